"""The border of an attention map set to 0 after its sigmoid: https://github.com/AggMan96/RK-Net/issues/9"""

import torch
from torch import nn


class Polish(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x):
        attention = torch.sigmoid(self.conv(x))  # <- saved
        attention[:, :, :, 0] = 0  # <- changed
        attention[:, :, 0, :] = 0  # <- changed
        return x * attention


torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 3, 1), Polish())
model(torch.randn(2, 1, 6, 6)).mean().backward()
