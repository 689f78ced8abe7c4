"""A number added in place to the result of a ReLU: https://github.com/pytorch/pytorch/issues/5687"""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
x = model(torch.randn(2, 3))  # <- saved
x += 1  # <- changed
x.sum().backward()
