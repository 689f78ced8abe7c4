"""NumPy makes the data, and is seeded only when the training begins."""
# class: random

import numpy as np
import torch
from torch import nn

data = np.random.rand(32, 8).astype(np.float32)  # <- parts
np.random.seed(0)
torch.manual_seed(0)
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for start in range(0, 32, 8):
    x = torch.from_numpy(data[start : start + 8])
    loss = nn.functional.cross_entropy(model(x), torch.arange(8) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
