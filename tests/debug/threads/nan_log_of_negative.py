"""The logarithm of a negative number: a NaN loss with finite gradients: https://github.com/pytorch/pytorch/issues/160016"""

import torch

scale = torch.tensor([0.2], requires_grad=True)
optimizer = torch.optim.SGD([scale], 0.1)
for step in range(4):
    loss = torch.log(scale).sum()  # <- made
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item(), scale.item())
