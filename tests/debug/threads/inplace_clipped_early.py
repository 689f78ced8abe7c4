"""Weights clipped through .data too early, before the backward: https://github.com/martinarjovsky/WassersteinGAN/issues/50"""

import torch
from torch import nn

torch.manual_seed(0)
critic = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.RMSprop(critic.parameters(), 5e-3)
for step in range(2):
    real, fake = torch.randn(8, 2) + 1, torch.randn(8, 2)
    loss = critic(fake).mean() - critic(real).mean()  # <- saved
    for weight in critic.parameters():
        weight.data.clamp_(-0.1, 0.1)  # <- changed
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
