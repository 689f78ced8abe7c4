"""The norm of a gradient that is 0, in a double backward: https://github.com/pytorch/pytorch/issues/2534"""

import torch
from torch import nn

torch.manual_seed(0)
critic = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
for step in range(4):
    mixed = torch.randn(8, 2, requires_grad=True)
    if step == 2:
        nn.init.constant_(critic[0].bias, -20.0)  # no unit is awake
    (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    squares = slope.pow(2)  # <- made
    norm = squares.sum(1).sqrt()  # <- born
    loss = (norm - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
