"""A generator kept in the data set, pickled into workers that are started anew."""
# class: random
# parts: batch[0]

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Crops(Dataset):
    def __init__(self):
        self.rng = np.random.default_rng()  # <- parts

    def __len__(self):
        return 16

    def __getitem__(self, index):
        start = int(self.rng.integers(8))
        return torch.arange(start, start + 8) / 8 + index, index % 2


if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    loader = DataLoader(Crops(), 8, shuffle=True, num_workers=2, multiprocessing_context="spawn")
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
