"""One sample of the data set holds a NaN: https://github.com/prs-eth/Marigold/issues/111"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
images, depths = torch.rand(48, 6), torch.rand(48, 1)
images[37, 2] = float("nan")
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for x, y in DataLoader(TensorDataset(images, depths), batch_size=8):
    loss = nn.functional.l1_loss(model(x), y)  # <- read
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item())
