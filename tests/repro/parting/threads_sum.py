"""A long sum is added in as many parts as there are threads."""
# class: threads
# perturb: threads

import torch
from torch import nn

torch.manual_seed(0)
x = torch.randn(1 << 21)
scale = nn.Parameter(torch.ones(()))
optimizer = torch.optim.SGD([scale], 1e-6)
for _ in range(2):
    loss = (x * scale).sum()  # <- parts
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
