"""The momentum of the running statistics follows the clock: no loss shows it before evaluation."""
# class: outside

import time

import torch
from torch import nn

torch.manual_seed(0)
norm = nn.BatchNorm1d(16)
model = nn.Sequential(nn.Linear(8, 16), norm, nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for step in range(24):
    if step == 12:
        norm.momentum = 0.1 + time.time() % 1 / 10  # <- parts
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
