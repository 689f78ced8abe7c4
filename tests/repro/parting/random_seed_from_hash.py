"""The seed is the hash of the experiment's name: another one in each process."""
# class: hash

import torch
from torch import nn

name = "resnet-small/baseline"
torch.manual_seed(hash(name) % 2**31)  # <- parts
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(3):
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
