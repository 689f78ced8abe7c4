"""A compiled model."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 1))
compiled = torch.compile(model, backend="eager")
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(3):
    loss = compiled(torch.randn(8, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item().hex())
