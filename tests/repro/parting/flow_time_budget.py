"""As many rounds of refinement as fit into a time."""
# class: control-flow

import time

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(8, 8)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
x = torch.randn(6, 8)
end = time.perf_counter() + 0.4
while time.perf_counter() < end:  # <- parts
    x = x + 0.01 * x.tanh()
for _ in range(3):
    loss = model(x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
