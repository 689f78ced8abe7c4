"""The logarithm of 0 in the branch that where does not take: https://github.com/pytorch/pytorch/issues/108618"""

import torch

weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
optimizer = torch.optim.SGD([weight], 0.1)
for step in range(3):
    x = weight * torch.tensor([float(step < 1), 1.0, 1.0])
    logs = torch.log2(x)  # <- made
    loss = torch.where(x > 0, logs, 2 * x).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
