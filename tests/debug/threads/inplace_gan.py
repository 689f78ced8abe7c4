"""The discriminator's step comes before the generator's backward: https://github.com/pytorch/pytorch/issues/39141"""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
discriminator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
optimizer_g = torch.optim.Adam(generator.parameters(), 1e-3)
optimizer_d = torch.optim.Adam(discriminator.parameters(), 1e-3)
for _ in range(2):
    real = discriminator(torch.randn(4, 3))
    fake = discriminator(generator(torch.randn(4, 2)))  # <- saved
    loss_d = -(real.log() + (1 - fake).log()).mean()
    loss_g = (1 - fake).log().mean()
    optimizer_d.zero_grad()
    loss_d.backward(retain_graph=True)
    optimizer_d.step()  # <- changed
    optimizer_g.zero_grad()
    loss_g.backward()
    optimizer_g.step()
