"""torch.compile is called on a model and on a function."""

import torch
from torch import nn

torch.manual_seed(0)
model = torch.compile(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))


@torch.compile
def scaled(x):
    return x * 2 + x.tanh()


optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(10):
    out = model(scaled(torch.randn(6, 8)))
    loss = nn.functional.cross_entropy(out, torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
