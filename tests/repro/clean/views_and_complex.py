"""Patches by views, transposes and unfold, and a filter over complex numbers."""

import torch
from torch import nn

torch.manual_seed(0)
weights = nn.Parameter(torch.randn(8, 5, dtype=torch.complex64))
mix = nn.Conv2d(4, 4, 1)
optimizer = torch.optim.SGD([weights, *mix.parameters()], 1e-3)
for _ in range(10):
    image = torch.randn(2, 1, 16, 16)
    patches = image.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(2, 4, 8, 8)
    spectrum = torch.fft.rfft2(mix(patches)) * weights
    back = torch.fft.irfft2(spectrum.conj().resolve_conj(), s=(8, 8))
    tiles = back.view(2, 2, 2, 8, 8).transpose(2, 3).contiguous().view(2, 16, 16)
    loss = (tiles - image[:, 0]).square().mean() + spectrum.abs().mean() * 1e-3
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
