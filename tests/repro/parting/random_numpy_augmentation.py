"""torch is seeded; the noise in the data set is NumPy's, and that is not."""
# class: random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Signals(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        signal = np.sin(np.arange(8) * index)
        noise = np.random.normal(0, 0.1, 8)  # <- parts
        return torch.from_numpy((signal + noise).astype(np.float32)), index % 2


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for x, y in DataLoader(Signals(), 8, shuffle=True):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
