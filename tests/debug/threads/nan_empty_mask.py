"""A loss averaged over a mask that is empty is 0 / 0: https://github.com/Zhen-Dong/Magic-Me/issues/14"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Conv2d(1, 1, 3, padding=1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(6):
    images = torch.randn(4, 1, 8, 8)
    masks = (images > 0).float()
    if step == 4:
        masks[2] = 0
    error = (model(images) - images).square() * masks
    loss = (error.sum([1, 2, 3]) / masks.sum([1, 2, 3])).mean()  # <- made
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
