"""The last checkpoint of a DDP training on a GPU, made to load anywhere.

ptools fix-ckpt info examples/last.ckpt
ptools fix-ckpt examples/last.ckpt --dry-run
python examples/fix_ckpt.py

`last.ckpt` is what `train` writes where the model is on the second GPU.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

import ptools


def net() -> nn.Module:
    """A classifier of small images."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )


def train(path: Path) -> nn.Module:
    """One step as a script takes it, and what such scripts save."""
    torch.manual_seed(0)
    model = net()
    parallel = nn.DataParallel(model)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    checkpoint = {
        "epoch": 1,
        "args": argparse.Namespace(lr=0.1, data=Path("imgs")),
        "state_dict": parallel.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, path)
    return model


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        model = train(path)
        report = ptools.fix_ckpt(path, weights_only=True, model=model)
        print(report.load)
        model.load_state_dict(torch.load(report.outputs[0], weights_only=True))
