"""A small network with batch norms and parallel branches, made plain convolutions.

ptools fuse examples/fuse.py -o fused.pt
ptools fuse examples/fuse.py:build -a width=32 --no-latency --json
python examples/fuse.py
"""

import torch
from torch import nn

import ptools


def conv_bn(width: int, size: int) -> nn.Sequential:
    """A convolution that keeps the size, and its batch norm."""
    conv = nn.Conv2d(width, width, size, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class Block(nn.Module):
    """Two convolutions and the identity, each with its batch norm, summed as in RepVGG."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = conv_bn(width, 3)
        self.narrow = conv_bn(width, 1)
        self.same = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.wide(x) + self.narrow(x) + self.same(x)).relu()


class Net(nn.Module):
    """A stem, two blocks, and a classifier behind a batch norm that no convolution precedes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.last = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.bn(self.stem(x)).relu())
        return self.head(self.last(x).relu().mean((2, 3)))


def build(width: int = 16) -> Net:
    """The network with statistics as a training leaves them."""
    torch.manual_seed(0)
    model = Net(width)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.num_batches_tracked.fill_(1000)
    return model


model = build()
example_inputs = (1, 3, 32, 32)

if __name__ == "__main__":
    report = ptools.fuse(model.eval(), torch.randn(1, 3, 32, 32), latency=False)
    print(f"{report.folded} of {report.norms} batch norms folded")
    print(f"error: {report.difference.relative:.0e} of the output's spread")
