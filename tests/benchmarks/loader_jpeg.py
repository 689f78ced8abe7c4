"""The number of workers that `ptools profile-loader` chooses for photographs, beside trying all.

Run `python tests/benchmarks/loader_jpeg.py [FOLDER] [MOST_WORKERS] [SECONDS]` on a quiet machine.
Without an ImageFolder, 2,000 JPEGs of 500x375 are made of smooth noise. The loader is that of an
ImageNet training. Each number of workers is timed by a plain loop, in rounds that take turns; what
was chosen is compared with the best of all by the medians.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

from harness import import_torchvision, show, show_versions

ROUNDS, BATCH = 3, 64


def make_photographs(folder: Path, count: int = 2000) -> None:
    """JPEGs as large in bytes as photographs: noise on several scales."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    (folder / "photographs").mkdir()
    for number in range(count):
        layers = [
            Image.fromarray(random.integers(0, 256, (375 // n, 500 // n, 3), np.uint8)).resize(
                (500, 375), Image.Resampling.BICUBIC
            )
            for n in (4, 16, 64)
        ]
        pixels = np.mean([np.asarray(layer, np.float32) for layer in layers], axis=0)
        Image.fromarray(pixels.astype(np.uint8)).save(
            folder / "photographs" / f"{number}.jpg", quality=90
        )


def make_loader(folder: Path, workers: int) -> Any:
    torchvision = import_torchvision()
    from torch.utils.data import ConcatDataset, DataLoader

    transforms = torchvision.transforms
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.2] * 3)]
    images = torchvision.datasets.ImageFolder(str(folder), transforms.Compose(steps))
    # Long enough that what is queued at the start does not count.
    epochs = ConcatDataset([images] * 50)
    return DataLoader(epochs, BATCH, shuffle=True, num_workers=workers)


def rate(folder: Path, workers: int, seconds: float) -> float:
    """Images a second of a plain loop, after what is queued at its start."""
    batches = iter(make_loader(folder, workers))
    for _ in range(3 * workers + 1):
        next(batches)
    count, start = 0, time.perf_counter()
    while count < 2 * max(1, workers) or time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return count * BATCH / (time.perf_counter() - start)


def compare(folder: Path, most: int, seconds: float) -> None:
    from ptools import profile_loader

    numbers = range(most + 1)
    profile = profile_loader(make_loader(folder, 4), budget=60)
    settings = (profile.best or profile.current).settings
    rounds = [[rate(folder, n, seconds) for n in numbers] for _ in range(ROUNDS)]
    rates = [median(column) for column in zip(*rounds, strict=True)]
    tried = {1, 4, *(trial.settings.num_workers for trial in profile.trials)}
    rows = [
        [
            str(n),
            f"{profile.predicted[n]:.0f}" if n in profile.predicted else "",
            f"{measured:.0f}",
            f"{measured / max(rates):.0%}",
            ", ".join(
                word
                for word, says in (("tried", n in tried), ("chosen", n == settings.num_workers))
                if says
            ),
        ]
        for n, measured in zip(numbers, rates, strict=True)
    ]
    show(
        f"Images a second by number of workers; {len(tried)} runs of the search",
        ["workers", "predicted", "plain loop", "of the best", ""],
        rows,
    )


def main(folder: str = "", most: str = "8", seconds: str = "4") -> None:
    warnings.filterwarnings("ignore", "This DataLoader will create")
    show_versions("ptools", "torchvision", "pillow")
    with tempfile.TemporaryDirectory() as temporary:
        if not folder:
            make_photographs(Path(temporary))
        compare(Path(folder or temporary), int(most), float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
