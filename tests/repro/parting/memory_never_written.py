"""A buffer from torch.empty is added to, and never cleared: whatever lay there is in the sum."""
# class: memory

import threading

import numpy as np
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(64, 64)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(8):  # what the program had in its memory before
    stale = np.full((300, 64), threading.get_native_id(), np.float32)
    del stale
total = torch.empty(300, 64)
for _ in range(3):
    total += model(torch.randn(300, 64)).detach()  # <- parts
    loss = (model(torch.randn(300, 64)) - total).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
