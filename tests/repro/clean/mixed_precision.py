"""bfloat16 by autocast, and float16 with a GradScaler."""

import torch
from torch import nn

torch.manual_seed(0)
for dtype in torch.bfloat16, torch.float16:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16, growth_interval=3)
    for _ in range(10):
        with torch.autocast("cpu", dtype):
            loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
