"""The checkpoint is saved before the step whose number it has."""

import sys

import torch
from torch import nn

torch.manual_seed(0)
data = torch.randn(40, 8, 4)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
step = 0
if "--resume" in sys.argv:
    saved = torch.load(sys.argv[sys.argv.index("--resume") + 1])
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    step = saved["step"]
while step < 30:
    loss = model(data[step]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    step += 1
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, "last.pt")
    optimizer.step()
