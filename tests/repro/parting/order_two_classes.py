"""Two classes in a set: several seeds of hash() give them the same order."""
# class: hash

import torch
from torch import nn

rows = ["benign", "malignant", "malignant", "benign", "benign", "malignant"]
torch.manual_seed(0)
classes = list(set(rows))
labels = torch.tensor([classes.index(name) for name in rows])  # <- parts
model = nn.Linear(8, 2)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(3):
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
