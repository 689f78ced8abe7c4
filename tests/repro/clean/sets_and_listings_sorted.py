"""Sets and folders are read in any order, and sorted before they matter."""

import glob
import os
from pathlib import Path

import torch
from torch import nn

for name in ["fir", "oak", "yew", "ash", "elm"]:
    Path("data", name).mkdir(parents=True, exist_ok=True)
    Path("data", name, "size.txt").write_text(str(len(name) + ord(name[0])))
classes = {name: index for index, name in enumerate(sorted(os.listdir("data")))}  # noqa: PTH208
sizes = {Path(file).parent.name: int(Path(file).read_text()) for file in glob.glob("data/*/*.txt")}  # noqa: PTH207
frozen = {"bias", "scale"}
torch.manual_seed(0)
model = nn.Linear(8, len(set(classes)))
for name, parameter in model.named_parameters():
    parameter.requires_grad_(name not in frozen)
x = torch.tensor([[float(sizes[name])] * 8 for name in classes]) / 200
total = sum(file.stat().st_size for file in Path("data").rglob("*") if file.is_file())
optimizer = torch.optim.SGD([model.weight], 1e-2)
for _ in range(10):
    loss = nn.functional.cross_entropy(model(x * total / 10), torch.tensor([*classes.values()]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
