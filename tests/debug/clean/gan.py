"""A GAN with two optimizers in the right order, and with no graph retained."""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
discriminator = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
optimizer_g = torch.optim.Adam(generator.parameters(), 1e-3, betas=(0.5, 0.999))
optimizer_d = torch.optim.Adam(discriminator.parameters(), 1e-3, betas=(0.5, 0.999))
criterion = nn.BCEWithLogitsLoss()
for _ in range(5):
    fake = generator(torch.randn(6, 2))
    optimizer_d.zero_grad()
    loss_real = criterion(discriminator(torch.randn(6, 3)), torch.ones(6, 1))
    loss_real.backward()
    loss_fake = criterion(discriminator(fake.detach()), torch.zeros(6, 1))
    loss_fake.backward()
    optimizer_d.step()
    optimizer_g.zero_grad()
    loss_g = criterion(discriminator(fake), torch.ones(6, 1))
    loss_g.backward()
    optimizer_g.step()
    print(loss_real.item().hex(), loss_fake.item().hex(), loss_g.item().hex())
