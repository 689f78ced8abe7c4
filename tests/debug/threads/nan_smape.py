"""A NaN taken out of the loss comes back in the backward of the division: https://github.com/pytorch/pytorch/issues/22820"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.ReLU())
optimizer = torch.optim.SGD(model.parameters(), 0.05)
for step in range(3):
    outputs, targets = model(torch.randn(6, 2)), torch.rand(6, 3)
    if step == 1:
        outputs, targets = outputs * (targets > 0.2), targets * (targets > 0.2)
    difference = torch.abs(outputs - targets)
    smape = difference / (torch.abs(outputs) + torch.abs(targets))  # <- made
    loss = smape[~torch.isnan(smape)].mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
