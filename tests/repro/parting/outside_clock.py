"""A weight of the loss follows the time of day, where the step was meant."""
# class: outside

import time

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(4):
    weight = 0.1 + time.time() % 1000 / 1000  # <- parts
    loss = weight * nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
