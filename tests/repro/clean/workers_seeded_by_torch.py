"""Unseeded Python and NumPy in workers: torch seeds both there, and so they repeat."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class Stream(IterableDataset):
    def __iter__(self):
        worker = get_worker_info()
        for number in range(worker.id, 24, worker.num_workers):
            x = np.random.rand(8) + random.random() + number
            yield torch.from_numpy(x).float(), number % 4


torch.manual_seed(0)
model = nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), 1e-3)
for x, y in DataLoader(Stream(), 4, num_workers=2):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
