"""Gradients of several batches accumulated, clipped, and a schedule of the rate."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.SiLU(inplace=False), nn.Linear(8, 3))
optimizer = torch.optim.AdamW(model.parameters(), 1e-2, foreach=True)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
for _ in range(4):
    for part in range(3):
        loss = nn.functional.cross_entropy(model(torch.randn(5, 4)), torch.arange(5) % 3) / 3
        loss.backward()
        print(part, loss.item().hex())
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    print(norm.item().hex())
