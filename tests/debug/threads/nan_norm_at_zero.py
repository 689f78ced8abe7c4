"""The root in a norm has no slope at 0: https://github.com/richzhang/PerceptualSimilarity/issues/69"""

import torch
from torch import nn


def normalised(features):
    squares = torch.sum(features**2, dim=1, keepdim=True)
    factor = torch.sqrt(squares)  # <- made
    return features / (factor + 1e-10)


torch.manual_seed(0)
net = nn.Conv2d(1, 4, 3, bias=False)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for step in range(4):
    image = torch.rand(1, 1, 6, 6)
    if step == 2:
        image[..., :3, :3] = 0
    loss = (normalised(net(image)) - normalised(net(image.flip(3)).detach())).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
