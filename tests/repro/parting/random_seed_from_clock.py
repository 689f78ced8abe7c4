"""Without --seed the program takes the time of day, and seeds all generators with it."""
# class: random

import random
import time

import numpy as np
import torch
from torch import nn


def set_seed(seed=None):
    if seed is None:
        seed = time.time_ns() % 2**32  # <- parts
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


set_seed()
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(3):
    loss = nn.functional.cross_entropy(model(torch.randn(6, 8)), torch.arange(6) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
