"""A pool of forked processes prepares the data, each with a generator that is new."""
# class: random

import multiprocessing
import random

import torch
from torch import nn


def sample(index):
    return [index + random.gauss(0, 0.1) for _ in range(8)]  # <- parts


torch.manual_seed(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    data = torch.tensor(pool.map(sample, range(16)))
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for x in data.split(8):
    loss = nn.functional.cross_entropy(model(x), torch.arange(8) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
