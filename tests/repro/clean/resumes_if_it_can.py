"""Writes a checkpoint, and goes on from one if it is there: each run begins without."""

from pathlib import Path

import torch
from torch import nn

file = Path("runs", "last.pt")
torch.manual_seed(0)
model = nn.Linear(8, 4)
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
begin = 0
if file.exists():
    state = torch.load(file)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    begin = state["step"]
file.parent.mkdir(exist_ok=True)
for step in range(begin, begin + 10):
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with Path("runs", "log.txt").open("a") as log:
        print(step, loss.item(), file=log)
both = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
torch.save(both, file)
