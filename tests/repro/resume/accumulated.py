"""Saved between two batches of one step: the gradients of the first are lost."""

import sys

import torch
from torch import nn

torch.manual_seed(0)
data = torch.randn(40, 8, 4)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
batch = 0
if "--resume" in sys.argv:
    saved = torch.load(sys.argv[sys.argv.index("--resume") + 1])
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    batch = saved["batch"]
while batch < 40:
    loss = model(data[batch]).square().mean()
    loss.backward()
    batch += 1
    if batch % 2 == 0:
        optimizer.step()
        optimizer.zero_grad()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "batch": batch}
    if batch % 3 == 0:
        torch.save(state, "last.pt")
