"""Two forward passes through batch norm before one backward, and evaluation in between."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1)
)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _ in range(4):
    real, fake = model(torch.randn(4, 1, 6, 6)), model(torch.rand(4, 1, 6, 6))
    loss = nn.functional.softplus(fake).mean() + nn.functional.softplus(-real).mean()
    with torch.no_grad():
        third = model(torch.zeros(4, 1, 6, 6)).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.eval()
    frozen = model(torch.ones(2, 1, 6, 6)).mean()
    frozen.backward()
    model.train()
    print(loss.item().hex(), third.item().hex(), frozen.item().hex())
