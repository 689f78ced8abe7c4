"""Data in which NaN stands for what is missing, and is taken out before it is used."""

import torch
from torch import nn

torch.manual_seed(0)
x, y = torch.randn(24, 4), torch.randn(24, 2)
x[torch.rand(24, 4) < 0.2] = float("nan")
y[torch.rand(24, 2) < 0.3] = float("nan")
mean = x.nanmean(0)
model = nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for part, target in zip(x.split(8), y.split(8), strict=True):
    missing = part.isnan()
    filled = torch.where(missing, mean, part) - mean
    filled = torch.cat([torch.nan_to_num(filled), missing.float()], 1)
    known = ~target.isnan()
    prediction = model(filled)
    loss = (prediction[known] - target[known]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        error = (model(filled) - target).abs().nanmean()
    print(loss.item().hex(), error.item().hex())
