"""Attention scores beyond 65504 in half precision: https://github.com/ultralytics/ultralytics/pull/24990"""

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.scale = width**-0.5

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(-2, -1)  # <- born
        weights = (scores * self.scale).softmax(-1)  # <- made
        return weights @ v


torch.manual_seed(0)
model = nn.Sequential(Attention(16), nn.Linear(16, 2)).half()
optimizer = torch.optim.SGD(model.parameters(), 1e-3)
for step in range(3):
    x = (torch.randn(2, 5, 16) * (400 if step == 2 else 1)).half()
    loss = model(x).float().square().mean().sqrt()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
