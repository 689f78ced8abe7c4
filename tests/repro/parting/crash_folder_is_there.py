"""The second run refuses to write where the first has written."""
# class: crash

from pathlib import Path

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for step in range(6):
    if step == 3:
        Path("..", "run").mkdir()  # <- parts
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
