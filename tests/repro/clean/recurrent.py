"""LSTM and GRU in training: their workspaces hold whatever was in the memory."""

import torch
from torch import nn

torch.manual_seed(0)
lstm, gru = nn.LSTM(6, 10, 2, batch_first=True, dropout=0.2), nn.GRU(10, 6, batch_first=True)
optimizer = torch.optim.Adam([*lstm.parameters(), *gru.parameters()], 1e-2)
for _ in range(10):
    x = torch.randn(4, 7, 6)
    hidden, _ = lstm(x)
    out, last = gru(hidden)
    loss = (out - x).square().mean() + last.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
