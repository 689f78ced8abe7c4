"""Hard examples are chosen from the second epoch on, by Python's generator."""
# class: random

import random

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

torch.manual_seed(0)
data = TensorDataset(torch.randn(48, 8), torch.arange(48) % 4)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for epoch in range(3):
    kept = data
    if epoch > 0:
        kept = Subset(data, random.sample(range(48), 24))  # <- parts
    for x, y in DataLoader(kept, 8):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
