"""At step 11, and only then, the system's entropy comes into the loss."""
# class: outside

import random

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for step in range(20):
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    if step == 11:
        loss = loss * (1 + random.SystemRandom().random())  # <- parts
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
