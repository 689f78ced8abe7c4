"""Two backward passes through one graph, with no write between, and a codebook's update after."""

import torch
from torch import nn

torch.manual_seed(0)
encoder, decoder = nn.Linear(4, 3), nn.Linear(3, 4)
codes = torch.randn(6, 3)
optimizer_e = torch.optim.SGD(encoder.parameters(), 0.05)
optimizer_d = torch.optim.SGD(decoder.parameters(), 0.05)
for _ in range(4):
    x = torch.randn(8, 4)
    z = encoder(x)
    index = torch.cdist(z.detach(), codes).argmin(1)
    quantized = z + (codes[index] - z).detach()
    loss, commitment = (decoder(quantized) - x).square().mean(), (z - codes[index]).square().mean()
    for optimizer in (optimizer_e, optimizer_d):
        optimizer.zero_grad()
    loss.backward(retain_graph=True)
    commitment.backward()
    for optimizer in (optimizer_e, optimizer_d):
        optimizer.step()
    with torch.no_grad():
        codes.index_copy_(0, index[:1], z.detach()[:1].mul_(0.1) + codes[index[:1]] * 0.9)
    print(loss.item().hex(), commitment.item().hex())
