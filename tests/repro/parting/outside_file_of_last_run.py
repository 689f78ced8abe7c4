"""The learning rate's scale is read from what the last run left, in a cache that all runs share."""
# class: outside

from pathlib import Path

import torch
from torch import nn

torch.manual_seed(0)
cache = Path("..", "best_loss.txt")
best = float(cache.read_text()) if cache.exists() else 1.0
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(3):
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    loss = loss / best  # <- parts
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
cache.write_text(str(best + loss.item()))
