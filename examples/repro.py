"""A run that repeats here, and perhaps not elsewhere: it takes files in the order of the disk.

ptools repro examples/repro.py
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
SHAPES = Path(__file__).parent / "shapes"


def images(folder: Path) -> list[Path]:
    """The files of a class."""
    files = list(folder.iterdir())
    return sorted(files) if "--sorted" in sys.argv else files


def pixels(file: Path) -> torch.Tensor:
    """An image as 16x16 numbers from 0 to 1."""
    data = bytearray(Image.open(file).convert("L").resize((16, 16)).tobytes())
    return torch.frombuffer(data, dtype=torch.uint8).float() / 255


classes = sorted(SHAPES.iterdir())
samples = [(file, label) for label, folder in enumerate(classes) for file in images(folder)]
net = nn.Sequential(nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, len(classes)))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for epoch in range(4):
    for batch in torch.randperm(len(samples)).split(8):
        files, labels = zip(*(samples[index] for index in batch), strict=True)
        loss = F.cross_entropy(net(torch.stack([*map(pixels, files)])), torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.6f}")
