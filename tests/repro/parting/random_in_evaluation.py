"""The training repeats; the evaluation flips images by an unseeded draw."""
# class: random

import numpy as np
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
for _ in range(12):
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
right = 0
with torch.no_grad():
    for _ in range(4):
        x = torch.randn(6, 8)
        scores = model(x + torch.from_numpy(np.random.rand(6, 8)).float() * 0.1)  # <- parts
        right += int((scores.argmax(1) == torch.arange(6) % 4).sum())
print(right / 24)
