"""Fused, foreach and plain steps, a schedule, clipping and accumulation."""

import torch
from torch import nn

torch.manual_seed(0)
for kind, options in [
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.Adam, {"foreach": True, "amsgrad": True}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (torch.optim.RMSprop, {"centered": True}),
    (torch.optim.NAdam, {}),
]:
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = kind(model.parameters(), 1e-2, **options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, 6)
    for _ in range(6):
        for _ in range(2):
            loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
            (loss / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
