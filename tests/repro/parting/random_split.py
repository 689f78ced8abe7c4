"""The split into training and validation is shuffled by Python's generator, unseeded."""
# class: random

import random

import torch
from torch import nn

torch.manual_seed(0)
data = torch.randn(40, 8)
indices = list(range(40))
random.shuffle(indices)  # <- parts
train, held_out = data[indices[:32]], data[indices[32:]]
model = nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 8))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for part in train.split(8):
    loss = (model(part) - part).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    print((model(held_out) - held_out).square().mean().item())
