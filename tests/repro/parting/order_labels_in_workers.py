"""The data set numbers its classes in the order of a set, and two workers read it."""
# class: hash
# parts: batch[1]

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Named(Dataset):
    def __init__(self, names):
        self.names = names
        self.classes = list(set(names))

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return torch.full((8,), index / 8), self.classes.index(self.names[index])


torch.manual_seed(0)
model = nn.Linear(8, 5)
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for x, y in DataLoader(Named(["ash", "elm", "fir", "oak", "yew"] * 4), 5, num_workers=2):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
