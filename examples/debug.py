"""A training that goes well until two points meet: the square root's slope at 0 is infinite.

ptools debug examples/debug.py
ptools debug --mode inplace examples/debug.py --bug inplace
"""

import argparse

import torch
from torch import nn


class Embedder(nn.Module):
    """Points in a plane; a residual block is added, in place if that is the bug asked for."""

    def __init__(self, bug: str) -> None:
        super().__init__()
        self.bug = bug
        self.stem = nn.Linear(8, 16)
        self.block = nn.Linear(16, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.sigmoid(self.stem(x))
        if self.bug == "inplace":
            h += self.block(h)  # sigmoid's gradient needs what is overwritten here
        else:
            h = h + self.block(h)
        return self.head(h)


def distance_loss(a: torch.Tensor, b: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How far the distances of the pairs are from those wanted."""
    distance = (a - b).square().sum(1).sqrt()
    return (distance - wanted).square().mean()


def train(bug: str, steps: int) -> None:
    torch.manual_seed(0)
    model = Embedder(bug)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        first, second = torch.randn(2, 32, 8)
        if bug == "nan" and step == steps // 2:
            second[7] = first[7]  # one sample was drawn twice
        wanted = (first - second).norm(dim=1)
        loss = distance_loss(model(first), model(second), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bug", choices=["nan", "inplace", "none"], default="nan")
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    train(arguments.bug, arguments.steps)
