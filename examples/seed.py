"""A training that repeats to the last bit, though it seeds nothing: this command seeds it.

ptools seed examples/seed.py
"""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Noisy(Dataset[torch.Tensor]):
    """Points on a line, moved by noise from a generator that is kept here without a seed."""

    def __init__(self) -> None:
        self.noise = np.random.default_rng()

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        x = index / 64
        return torch.tensor([x, 2 * x + self.noise.normal(0, 0.1)], dtype=torch.float32)


def train() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=random.choice([0.05, 0.1, 0.2]))
    for epoch in range(3):
        for batch in DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=2):
            loss = (model(batch[:, :1]) - batch[:, 1:]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.9f}")


if __name__ == "__main__":
    train()
