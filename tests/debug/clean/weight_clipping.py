"""A Wasserstein critic whose weights are clipped after its step, also through .data."""

import torch
from torch import nn

torch.manual_seed(0)
critic = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
generator = nn.Linear(2, 2)
optimizer_c = torch.optim.RMSprop(critic.parameters(), 5e-3)
optimizer_g = torch.optim.RMSprop(generator.parameters(), 5e-3)
for step in range(6):
    fake = generator(torch.randn(8, 2)).detach()
    loss = critic(fake).mean() - critic(torch.randn(8, 2) + 1).mean()
    optimizer_c.zero_grad()
    loss.backward()
    optimizer_c.step()
    for weight in critic.parameters():
        weight.data.clamp_(-0.1, 0.1)
    if step % 2:
        loss = -critic(generator(torch.randn(8, 2))).mean()
        optimizer_g.zero_grad()
        loss.backward()
        optimizer_g.step()
    print(loss.item().hex())
