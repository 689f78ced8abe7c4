"""Spectral norm of both kinds, weight norm, and orthogonal weights."""

import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

torch.manual_seed(0)
model = nn.Sequential(
    parametrizations.spectral_norm(nn.Linear(4, 8)),
    nn.LeakyReLU(0.2),
    spectral_norm(nn.Linear(8, 8)),
    nn.LeakyReLU(0.2),
    parametrizations.weight_norm(nn.Linear(8, 8)),
    parametrizations.orthogonal(nn.Linear(8, 8)),
    nn.Linear(8, 1),
)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _ in range(4):
    loss = nn.functional.softplus(model(torch.randn(6, 4))).mean()
    loss = loss + nn.functional.softplus(-model(torch.randn(6, 4))).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item().hex())
