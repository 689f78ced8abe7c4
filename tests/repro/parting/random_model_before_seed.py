"""The model is made before the seed is set: https://github.com/pytorch/torchtune/issues/2335"""
# class: random

import torch
from torch import nn

model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))  # <- parts
torch.manual_seed(0)
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(4):
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
