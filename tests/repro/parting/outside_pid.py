"""Each process is to begin elsewhere in the data, and the pid stands for its rank."""
# class: outside

import os

import torch
from torch import nn

torch.manual_seed(0)
data = torch.randn(4001, 8)
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
first = os.getpid() % 3989  # <- parts
for _ in range(3):
    loss = nn.functional.cross_entropy(model(data[first : first + 6]), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
