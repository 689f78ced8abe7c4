"""A helper gives torch "a fresh seed" after the program had set one."""
# class: random

import torch
from torch import nn


def warm_up(device):
    torch.seed()  # <- parts
    return torch.ones(2, 2, device=device).sum()


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
warm_up("cpu")
for _ in range(4):
    loss = nn.functional.cross_entropy(model(torch.ones(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
