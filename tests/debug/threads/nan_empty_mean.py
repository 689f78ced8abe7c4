"""The mean of no elements at all: https://github.com/RezaKakooee/space_layout_gym/issues/4"""

import torch
from torch import nn

torch.manual_seed(0)
actor = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(actor.parameters(), 0.1)
memory = torch.randn(22, 3)
for start in range(0, 30, 8):
    states = memory[start : start + 8]
    chances = actor(states).log_softmax(1)
    loss = -chances[:, 0].mean()  # <- made
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(start, loss.item())
