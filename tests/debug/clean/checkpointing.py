"""Activation checkpointing of both kinds, around dropout, batch norm and ReLU in place."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.2)
        )

    def forward(self, x):
        return x + self.layers(x)


torch.manual_seed(0)
first, second, head = Block(), Block(), nn.Linear(6, 1)
parameters = [*first.parameters(), *second.parameters(), *head.parameters()]
optimizer = torch.optim.SGD(parameters, 0.05)
for _ in range(4):
    x = torch.randn(8, 6, requires_grad=True)
    hidden = checkpoint(first, x, use_reentrant=True)
    hidden = checkpoint(second, hidden, use_reentrant=False)
    loss = head(hidden).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item().hex())
