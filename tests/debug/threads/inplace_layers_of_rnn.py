"""The layers' states of an RNN written into one tensor: https://github.com/pytorch/pytorch/pull/173888"""

import torch
from torch import nn

torch.manual_seed(0)
layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
states = torch.zeros(2, 3, 4)
for x in torch.randn(3, 3, 4):
    below = x
    for i, layer in enumerate(layers):
        below = states[i] = torch.tanh(below + layer(states[i]))  # <- saved # <- changed
loss = states[-1].sum()
loss.backward()
