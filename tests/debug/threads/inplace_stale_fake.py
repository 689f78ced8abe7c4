"""One fake image serves several steps of the generator: https://github.com/tamarott/SinGAN/issues/148"""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 6))
discriminator = nn.Linear(6, 1)
optimizer = torch.optim.Adam(generator.parameters(), 5e-4)
noise = torch.randn(2, 4)
fake = generator(noise)  # <- saved
for _ in range(3):
    loss = -discriminator(fake).mean()
    optimizer.zero_grad()
    loss.backward(retain_graph=True)
    optimizer.step()  # <- changed
