"""The classes are numbered as os.listdir gives them: https://github.com/ByteDance-Seed/VeOmni/issues/330"""
# class: files

import os
from pathlib import Path

import torch
from torch import nn

for name in ["cat", "dog", "eel", "fox", "gnu", "hen"]:
    Path("data", name).mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
classes = {name: index for index, name in enumerate(os.listdir("data"))}  # <- parts  # noqa: PTH208
labels = torch.tensor([classes[name] for name in ["cat", "dog", "eel", "fox", "gnu", "hen"]])
model = nn.Linear(8, 6)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(3):
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
