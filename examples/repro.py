"""A run that repeats on this machine, and on another perhaps not: it takes files as they are listed.

ptools repro examples/repro.py
ptools repro examples/repro.py --sorted
"""

import os
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
SHAPES = Path(__file__).parent / "shapes"
CLASSES = sorted(os.listdir(SHAPES))


def images(name: str) -> list[str]:
    """The files of a class."""
    files = os.listdir(SHAPES / name)
    return sorted(files) if "--sorted" in sys.argv else files


def pixels(file: Path) -> torch.Tensor:
    """An image as 16x16 numbers from 0 to 1."""
    data = bytearray(Image.open(file).convert("L").resize((16, 16)).tobytes())
    return torch.frombuffer(data, dtype=torch.uint8) / 255


samples = [
    (SHAPES / name / file, label) for label, name in enumerate(CLASSES) for file in images(name)
]
net = nn.Sequential(nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, len(CLASSES)))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for epoch in range(4):
    for batch in torch.randperm(len(samples)).split(8):
        files, labels = zip(*(samples[index] for index in batch), strict=True)
        loss = F.cross_entropy(net(torch.stack([*map(pixels, files)])), torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {loss.item():.6f}")
