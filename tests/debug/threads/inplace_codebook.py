"""A codebook's moving average is updated before it was used: https://github.com/zalandoresearch/pytorch-vq-vae/issues/5"""

import torch
from torch import nn


class Quantizer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randn(8, 4))

    def forward(self, z):
        closeness = z @ self.codes.T  # <- saved
        index = closeness.argmax(1)
        with torch.no_grad():
            means = nn.functional.one_hot(index, 8).float().T @ z
            self.codes.mul_(0.9)  # <- changed
            self.codes.add_(means, alpha=0.1)  # <- changed
        return self.codes[index], nn.functional.cross_entropy(closeness, index)


torch.manual_seed(0)
encoder, quantizer = nn.Linear(3, 4), Quantizer()
z = encoder(torch.randn(16, 3))
codes, entropy = quantizer(z)
loss = (z - codes).square().mean() + entropy
loss.backward()
