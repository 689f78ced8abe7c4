"""The loader has a generator of its own, and that is seeded by the system."""
# class: random

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
data = TensorDataset(torch.randn(32, 8), torch.arange(32) % 4)
generator = torch.Generator()
generator.seed()  # <- parts
for x, y in DataLoader(data, 8, shuffle=True, generator=generator):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
