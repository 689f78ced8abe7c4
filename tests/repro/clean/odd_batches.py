"""Batches that are no tensors: objects, named tuples, arrays, ragged lists, texts, sets."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader


@dataclass
class Graph:
    nodes: torch.Tensor
    edges: list[tuple[int, int]]
    tags: set[str]


class Pair(NamedTuple):
    graph: Graph
    scores: np.ndarray


def collate(numbers):
    nodes = torch.tensor([[float(one)] * 8 for one in numbers])
    edges = [(one, one + 1) for one in numbers]
    graph = Graph(nodes, edges, {f"tag{one}" for one in numbers})
    return Pair(graph, np.array(numbers, dtype=np.float64)), lambda: numbers


torch.manual_seed(0)
model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), 1e-5)
for pair, get in DataLoader(range(24), 4, shuffle=True, collate_fn=collate):
    target = torch.from_numpy(pair.scores).float()[:, None] + len(get())
    loss = (model(pair.graph.nodes) - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
