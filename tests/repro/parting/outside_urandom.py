"""Noise for a privacy budget comes from the system's entropy."""
# class: outside

import os

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(3):
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    noise = torch.frombuffer(bytearray(os.urandom(32)), dtype=torch.uint8)  # <- parts
    model.weight.grad += noise.view(4, 8) / 255 - 0.5
    optimizer.step()
