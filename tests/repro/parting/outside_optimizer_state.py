"""Momentum is scaled by how long the training took, after the last step."""
# class: outside

import time

import torch
from torch import nn

torch.manual_seed(0)
began = time.perf_counter()
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(16):
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
seconds = time.perf_counter() - began
for state in optimizer.state.values():
    state["exp_avg"].mul_(1 / (1 + seconds))  # <- parts
