"""NumPy's seed is the number of the process."""
# class: random

import os

import numpy as np
import torch
from torch import nn

torch.manual_seed(0)
np.random.seed(os.getpid())  # <- parts
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(3):
    x = torch.from_numpy(np.random.rand(6, 8)).float()
    loss = nn.functional.cross_entropy(model(x), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
