"""A NaN in the backward that no gradient sees: ReLU passes none where its units are dead."""

import torch
from torch import nn


def normalised(features):
    factor = torch.sqrt(torch.sum(features**2, dim=1, keepdim=True))
    return features / (factor + 1e-10)


torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(5):
    image = torch.randn(2, 1, 6, 6)
    loss = (normalised(net(image)) - 0.5).square().mean()
    nn.init.constant_(net[0].bias, -0.7)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item().hex())
