"""The weights come from a file and are the same; nothing seeds what dropout draws."""
# class: random

import torch
from torch import nn
from torch.nn.utils import skip_init

model = nn.Sequential(
    skip_init(nn.Linear, 8, 16), nn.ReLU(), nn.Dropout(0.3), skip_init(nn.Linear, 16, 4)
)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.copy_(torch.linspace(-0.4, 0.4, parameter.numel()).view_as(parameter))
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(4):
    scores = model(torch.ones(6, 8))  # <- parts
    loss = nn.functional.cross_entropy(scores, torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
