"""Activations are computed again in the backward, with the same dropout."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

torch.manual_seed(0)
blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.2)) for _ in range(3))
optimizer = torch.optim.SGD(blocks.parameters(), 1e-2, momentum=0.9)
for step in range(10):
    x = torch.randn(4, 8, requires_grad=True)
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=bool(step % 2))
    optimizer.zero_grad()
    x.square().mean().backward()
    optimizer.step()
