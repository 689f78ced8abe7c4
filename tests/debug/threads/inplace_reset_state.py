"""The states of finished episodes set to 0 by index: https://github.com/pytorch/rl/issues/1742"""

import torch
from torch import nn


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNNCell(3, 4), nn.Linear(4, 2)

    def forward(self, x, state, is_init):
        state[is_init] = 0  # <- changed
        return self.cell(x, state)  # <- saved


torch.manual_seed(0)
policy = Policy()
state = torch.zeros(5, 4)
for _ in range(4):
    state = policy(torch.randn(5, 3), state, torch.rand(5) < 0.4)
policy.head(state).square().mean().backward()
