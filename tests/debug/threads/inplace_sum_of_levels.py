"""Features added up with += after an activation: https://github.com/easton-cau/SOTR/issues/19"""

import torch
from torch import nn


class Levels(nn.Module):
    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(2, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        total = self.levels[0](x).relu()  # <- saved
        for level in self.levels[1:]:
            total += level(x).relu()  # <- changed
        return total


torch.manual_seed(0)
loss = Levels()(torch.randn(2, 2, 5, 5)).square().mean()
loss.backward()
