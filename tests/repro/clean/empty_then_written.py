"""Memory that nothing was written to is filled before it is read: whole, and row by row."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
rows = torch.empty(6, 8)
for _ in range(10):
    for number in range(6):
        rows[number] = torch.randn(8)
    noise = torch.empty(6, 8).normal_()
    out = torch.empty(6, 4)
    torch.mm(rows + noise, model.weight.detach().t(), out=out)
    kept = torch.empty_like(out).copy_(out)
    halves = torch.empty(12, 4)
    halves[:6], halves[6:] = out, kept
    loss = (model(rows) - halves.view(2, 6, 4).mean(0)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    padded = torch.empty(0).resize_(3).fill_(loss.item())
print(padded.sum().item())
