"""Loaders in which one thing is slow, that thing and how slow drawn at random; for two cores."""

import io
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from costs import (
    FORK,
    Blur,
    Crop,
    Flip,
    Jitter,
    Locked,
    Many,
    Pages,
    Samples,
    collated,
    multiply,
    rarely,
    spin,
    start,
    with_opencv,
    with_pillow,
)
from PIL import Image
from torch.utils.data import DataLoader, Dataset

TRANSFORMS = (Crop, Flip, Jitter, Blur)


@dataclass
class Plant:
    """A loader, and the verdict that is true of it."""

    loader: DataLoader
    kind: str
    part: str | None = None
    step_ms: float | None = None
    cold: bool = False


def loads(dataset: Dataset, draw: random.Random, workers: int, **settings: Any) -> DataLoader:
    """A loader of small batches."""
    if workers:
        settings["multiprocessing_context"] = FORK
    return DataLoader(dataset, draw.choice((8, 16)), num_workers=workers, **settings)


def some(function: Callable[[float], Any], milliseconds: float) -> Callable[[], Any]:
    return partial(function, milliseconds / 1e3)


def consumer(draw: random.Random, _: Path) -> Plant:
    dataset = Samples(some(spin, draw.uniform(0.1, 0.8)))
    step = draw.uniform(60, 150)
    return Plant(loads(dataset, draw, 2), "consumer", step_ms=step)


def storage(draw: random.Random, _: Path) -> Plant:
    dataset = Samples(some(time.sleep, draw.uniform(4, 20)), some(spin, draw.uniform(0.1, 0.5)))
    return Plant(loads(dataset, draw, draw.choice((1, 2, 3))), "storage")


def cold_storage(draw: random.Random, folder: Path) -> Plant:
    dataset = Samples(Pages(folder / "pages", draw.randrange(20, 60)))
    return Plant(loads(dataset, draw, 2), "storage", cold=True)


def decode(draw: random.Random, _: Path) -> Plant:
    size = draw.randrange(300, 800), draw.randrange(300, 800)
    pixels = np.random.default_rng(draw.randrange(1 << 30)).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, draw.choice(("JPEG", "PNG")))
    decoded = draw.choice((with_pillow, with_opencv))
    return Plant(loads(Samples(partial(decoded, file.getvalue())), draw, 2), "decode")


def transform(draw: random.Random, _: Path) -> Plant:
    slow = draw.choice(TRANSFORMS)
    chain = [
        kind(draw.uniform(3, 8) / 1e3 if kind is slow else draw.uniform(0.05, 0.4) / 1e3)
        for kind in TRANSFORMS
    ]
    draw.shuffle(chain)
    dataset = Samples(some(spin, draw.uniform(0.1, 0.5)), transforms=chain)
    return Plant(loads(dataset, draw, 2), "transform", slow.__name__)


def dataset_code(draw: random.Random, _: Path) -> Plant:
    dataset = Samples(some(spin, draw.uniform(3, 8)), transforms=[Flip(draw.uniform(0, 5e-4))])
    return Plant(loads(dataset, draw, 2), "dataset code")


def collate(draw: random.Random, _: Path) -> Plant:
    dataset = Samples(some(spin, draw.uniform(0.1, 0.4)))
    slowly = partial(collated, draw.uniform(40, 100) / 1e3)
    return Plant(loads(dataset, draw, 2, collate_fn=slowly), "collate")


def transfer(draw: random.Random, _: Path) -> Plant:
    dataset = Samples(Many(draw.randrange(200, 500)))
    return Plant(loads(dataset, draw, draw.choice((1, 2))), "transfer")


def start_up(draw: random.Random, _: Path) -> Plant:
    dataset = Samples(some(spin, draw.uniform(0.2, 0.8)), length=draw.randrange(200, 400))
    slowly = partial(start, draw.uniform(1, 2))
    return Plant(loads(dataset, draw, 2, worker_init_fn=slowly), "start-up")


def too_few_workers(draw: random.Random, _: Path) -> Plant:
    dataset = Samples(some(spin, draw.uniform(2, 6)))
    return Plant(loads(dataset, draw, draw.choice((0, 1))), "too few workers")


def too_many_workers(draw: random.Random, _: Path) -> Plant:
    dataset = Samples(some(spin, draw.uniform(1, 4)))
    return Plant(loads(dataset, draw, draw.randrange(12, 20)), "too many workers or threads")


def too_many_threads(draw: random.Random, _: Path) -> Plant:
    dataset = Samples(partial(multiply, draw.randrange(300, 600)))
    return Plant(loads(dataset, draw, draw.choice((2, 3, 4))), "too many workers or threads")


def serialised(draw: random.Random, _: Path) -> Plant:
    dataset = Samples(Locked(draw.uniform(3, 8) / 1e3), some(spin, draw.uniform(0.1, 0.5)))
    return Plant(loads(dataset, draw, draw.randrange(3, 7)), "serialised")


def head_of_line(draw: random.Random, _: Path) -> Plant:
    late = partial(rarely, draw.randrange(50, 100), draw.uniform(100, 200) / 1e3)
    dataset = Samples(late, some(spin, draw.uniform(0.8, 1.5)))
    return Plant(loads(dataset, draw, draw.choice((2, 3, 4))), "head-of-line")


def balanced(draw: random.Random, _: Path) -> Plant:
    milliseconds = draw.uniform(1, 3)
    near = [milliseconds * draw.uniform(0.8, 1.2) for _ in range(4)]
    chain = [kind(near.pop() / 1e3) for kind in draw.sample(TRANSFORMS, 3)]
    return Plant(loads(Samples(some(spin, near.pop()), transforms=chain), draw, 2), "balanced")


PLANTS: dict[str, Callable[[random.Random, Path], Plant]] = {
    "consumer": consumer,
    "storage": storage,
    "storage, cold files": cold_storage,
    "decode": decode,
    "transform": transform,
    "dataset code": dataset_code,
    "collate": collate,
    "transfer": transfer,
    "start-up": start_up,
    "too few workers": too_few_workers,
    "too many workers": too_many_workers,
    "too many threads": too_many_threads,
    "serialised": serialised,
    "head-of-line": head_of_line,
    "balanced": balanced,
}


def planted(name: str, seed: int, folder: Path) -> Plant:
    """The loader of a class that a seed stands for; files that it needs go into `folder`."""
    return PLANTS[name](random.Random(f"{name} {seed}"), folder)
