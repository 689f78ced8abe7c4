"""Sparse gradients, and an embedding bag."""

import torch
from torch import nn

torch.manual_seed(0)
table, bag = nn.Embedding(50, 8, sparse=True), nn.EmbeddingBag(50, 8, mode="mean")
sparse = torch.optim.SparseAdam(table.parameters(), 1e-2)
dense = torch.optim.Adagrad(bag.parameters(), 1e-2)
for _ in range(10):
    words = torch.randint(50, (4, 6))
    loss = (table(words).mean(1) - bag(words)).square().mean()
    sparse.zero_grad()
    dense.zero_grad()
    loss.backward()
    sparse.step()
    dense.step()
