"""A training for one process or many: DDP, bf16, four batches a step, clipping, a checkpoint.

ptools launch --gpus cpu -n 2 examples/train.py
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from ptools import train


def spots() -> TensorDataset:
    """Images of 8x8 random dots; the class is the quarter in which the brightest lies."""
    images = torch.rand(512, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    brightest = images.flatten(1).argmax(1)
    return TensorDataset(images, brightest // 32 * 2 + brightest % 8 // 4)


def net() -> nn.Module:
    """Small enough for a CPU."""
    features = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*features, nn.Linear(16 * 8 * 8, 4))


with train.session(seed=0, amp="bf16") as s:
    with s.rank0_first():
        data = spots()
    loader = s.loader(data, 16, shuffle=True)
    model = s.model(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=s.scale_lr(0.1), momentum=0.9)
    step = s.stepper(model, optimizer, loader, accum=4, clip=1.0)
    for epoch in range(3):
        for x, y in loader:
            with step:
                loss = F.cross_entropy(model(x).float(), y)
            step(loss)
        s.print(f"epoch {epoch}: loss {s.mean(loss):.7f}")
    s.save("spots.ckpt", model=model, optimizer=optimizer)
