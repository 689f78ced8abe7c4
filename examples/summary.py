"""What a small convolutional network costs, before a single weight is allocated.

ptools summary examples/summary.py
python examples/summary.py
"""

import torch
from torch import nn

import ptools


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn1(self.conv1(x)).relu()
        return (x + self.bn2(self.conv2(y))).relu()


class Net(nn.Module):
    """A stem, three equal blocks and a classifier."""

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(3)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def example_inputs() -> torch.Tensor:
    """Found by `ptools summary`, so that it need not guess."""
    return torch.empty(1, 3, 64, 64)


if __name__ == "__main__":
    summary = ptools.summarize(Net, example_inputs(), train=True, optimizer="sgd", batch=32)
    print(f"{summary.parameters:,} parameters, {summary.macs:,} MACs")
    assert summary.memory is not None
    print(f"{summary.memory.peak_bytes:,} bytes to train at batch 32")
