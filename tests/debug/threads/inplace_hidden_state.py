"""A hidden state carried over steps, with the graph retained: https://github.com/mlech26l/ncps/issues/62"""

import torch
from torch import nn

torch.manual_seed(0)
cell, readout = nn.GRUCell(3, 5), nn.Linear(5, 1)
optimizer = torch.optim.Adam([*cell.parameters(), *readout.parameters()], 1e-2)
state = torch.zeros(2, 5)
for _ in range(3):
    x, y = torch.randn(2, 3), torch.randn(2, 1)
    state = cell(x, state)  # <- saved
    loss = (readout(state) - y).square().mean()
    optimizer.zero_grad()
    loss.backward(retain_graph=True)
    optimizer.step()  # <- changed
