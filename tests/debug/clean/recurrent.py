"""An LSTM and a cell of one's own, with the state detached between the pieces of a sequence."""

import torch
from torch import nn

torch.manual_seed(0)
lstm, cell, head = nn.LSTM(3, 6, 2, dropout=0.1), nn.GRUCell(6, 6), nn.Linear(6, 4)
parameters = [*lstm.parameters(), *cell.parameters(), *head.parameters()]
optimizer = torch.optim.SGD(parameters, 0.1)
states, own = None, torch.zeros(2, 6)
for _ in range(4):
    out, states = lstm(torch.randn(5, 2, 3), states)
    for x in out:
        own = cell(x, own)
    loss = nn.functional.cross_entropy(head(own), torch.tensor([1, 3]))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_value_(parameters, 0.5)
    optimizer.step()
    states, own = tuple(state.detach() for state in states), own.detach()
    print(loss.item().hex())
