"""A black image scaled by its own range, in a worker process: https://github.com/albumentations-team/albumentations/issues/1742"""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        image = torch.rand(4, generator=torch.Generator().manual_seed(index))
        if index == 13:
            image.zero_()
        return (image - image.min()) / (image.max() - image.min()), index % 2


torch.manual_seed(0)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for x, y in DataLoader(Images(), batch_size=4, num_workers=1, multiprocessing_context="fork"):
    loss = nn.functional.cross_entropy(model(x), y)  # <- read
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item())
