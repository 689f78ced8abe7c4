"""Weights and data come from files; only the order of the samples is drawn, unseeded."""
# class: random

import torch
from torch import nn
from torch.nn.utils import skip_init
from torch.utils.data import DataLoader, TensorDataset

model = skip_init(nn.Linear, 8, 4)
nn.init.zeros_(model.weight)
nn.init.zeros_(model.bias)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
data = TensorDataset(torch.linspace(-1, 1, 256).view(32, 8), torch.arange(32) % 4)
loader = DataLoader(data, 8, shuffle=True)
for x, y in loader:  # <- parts
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
