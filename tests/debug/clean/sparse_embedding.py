"""Sparse gradients of embeddings, with SparseAdam beside another optimizer."""

import torch
from torch import nn

torch.manual_seed(0)
words, bags = nn.Embedding(40, 4, sparse=True), nn.EmbeddingBag(40, 4, mode="mean", sparse=True)
head = nn.Linear(8, 3)
sparse = torch.optim.SparseAdam([*words.parameters(), *bags.parameters()], 1e-2)
dense = torch.optim.Adam(head.parameters(), 1e-2)
for _ in range(4):
    index = torch.randint(40, (6, 3))
    features = torch.cat([words(index).mean(1), bags(index)], 1)
    loss = nn.functional.cross_entropy(head(features), torch.arange(6) % 3)
    for optimizer in (sparse, dense):
        optimizer.zero_grad()
    loss.backward()
    for optimizer in (sparse, dense):
        optimizer.step()
    print(loss.item().hex())
