"""The training ends when its time is up, at another step in each run."""
# class: length

import time

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
end = time.perf_counter() + 0.3
for _ in range(100_000):
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if time.perf_counter() > end:  # <- parts
        break
