"""Pack a folder of images, and train on the packed set as on the folder.

ptools pack-lmdb examples/shapes -o shapes.lmdb
ptools lmdb verify shapes.lmdb --against examples/shapes
python examples/pack_lmdb.py
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import ptools

SHAPES = Path(__file__).parent / "shapes"


def transform(image: np.ndarray) -> torch.Tensor:
    """Height x width x 3 bytes to 3 x height x width floats."""
    return torch.from_numpy(image).permute(2, 0, 1) / 255


def train(database: str) -> float:
    """The loss after a few epochs."""
    dataset = ptools.LMDBImageFolder(database, transform=transform, loader="array")
    loader = DataLoader(dataset, batch_size=8, shuffle=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, len(dataset.classes)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(20):
        for images, targets in loader:
            loss = nn.functional.cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loss.item()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        report = ptools.pack_lmdb(SHAPES, Path(folder) / "shapes.lmdb")
        print(f"{report.images} images packed, loss {train(report.output):.2f}")
