"""The unbiased deviation of a single value, in a last batch of 1: https://github.com/pytorch/pytorch/issues/29372"""

import torch
from torch import nn

torch.manual_seed(0)
data, targets = torch.randn(9, 3), torch.randn(9, 1)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for x, y in zip(data.split(4), targets.split(4), strict=True):
    x = x - x.mean(0)
    x = x / (x.std(0) + 1e-6)  # <- made
    loss = nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(len(x), loss.item())
