"""The root of a negative number, and a later root that is blamed: https://github.com/pytorch/pytorch/issues/160016"""

import torch

x = torch.tensor([3.0], requires_grad=True)
optimizer = torch.optim.SGD([x], 1.0)
for step in range(5):
    y = torch.sqrt(x - 2)  # <- made
    y = torch.sqrt(y + 1e-3)
    loss = y.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
