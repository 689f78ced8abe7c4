"""Samples go into folds by a number that is new in each run, not by their name."""
# class: outside

import uuid

import torch
from torch import nn

torch.manual_seed(0)
samples = torch.randn(40, 8)
keys = [uuid.uuid4().int for _ in range(40)]  # <- parts
fold = torch.tensor([key % 5 for key in keys])
model = nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for number in range(5):
    x = samples[fold != number]
    loss = (model(x) - x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
