"""Logarithms of 0 that are weighed away in the right manner."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 3))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(4):
    logits = model(torch.randn(5, 4))
    p = logits.relu() / logits.relu().sum(1, keepdim=True).clamp(min=1e-6)  # with zeros
    safe = torch.where(p > 0, p, 1.0)
    entropy = -(p * safe.log()).sum(1).mean()
    with torch.no_grad():
        logs = p.log()  # -inf
        share = logs.exp().sum() + torch.special.entr(p).sum()
    best = torch.full((5,), float("inf"))
    best = torch.minimum(best, logits.square().sum(1))
    loss = nn.functional.cross_entropy(logits, torch.arange(5) % 3) - 0.1 * entropy
    loss = loss + 0.01 * best.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item().hex(), share.item().hex())
