"""What stands on stdin is read, and both runs get the same."""

import sys

import torch
from torch import nn

numbers = [float(word) for word in sys.stdin.read().split()] or [1.0, 2.0]
torch.manual_seed(0)
model = nn.Linear(len(numbers), 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(3):
    loss = nn.functional.cross_entropy(model(torch.tensor([numbers])), torch.tensor([1]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
