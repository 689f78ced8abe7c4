"""From step 37 on samples are mixed, by NumPy's generator that nobody seeded."""
# class: random

import numpy as np
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for step in range(45):
    x, y = torch.randn(6, 8), torch.arange(6) % 4
    if step >= 37:
        share = np.random.beta(0.4, 0.4)  # <- parts
        x = share * x + (1 - share) * x.flip(0)
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
