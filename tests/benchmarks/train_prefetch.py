"""Where BackgroundLoader helps, and where it does not: wall times against plain and workers.

Run `python tests/benchmarks/train_prefetch.py [ROUNDS [BATCHES]]` (5 rounds of 40 batches if not
given) on a machine with two free cores.

A loader that sleeps (a disk, a network), one that computes in Python and one that computes without
the GIL, as decoders do, stand before a step of torch on one thread. Loader and step take 8 ms
together. Each epoch is timed from its second batch on, so that the start of workers does not count;
the ways take turns within a round, and of the rounds the median counts. Nothing here is measured on
a GPU, where the step leaves the CPU to the loader, and CUDAPrefetcher is not measured at all.
"""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch
from harness import show, show_versions
from torch.utils.data import DataLoader, Dataset

from ptools.train.prefetch import BackgroundLoader

TOGETHER = 0.008  # seconds of loader and step
PARTS = (0.2, 0.5, 0.8)  # of it, the loader's
BYTES = bytes(1 << 16)
MATRIX = torch.randn(128, 128)


def sleeping(seconds: int) -> None:
    time.sleep(seconds * 1e-6)


def in_python(rounds: int) -> None:
    total = 0
    for number in range(rounds * 10):
        total += number


def without_gil(rounds: int) -> None:
    for _ in range(rounds):
        zlib.crc32(BYTES)


def step(rounds: int) -> None:
    for _ in range(rounds):
        MATRIX.mm(MATRIX)


def rounds_for(work: Callable[[int], None], seconds: float) -> int:
    """How many rounds of it take so long on an idle core."""
    if work is sleeping:
        return round(seconds * 1e6)
    times = []
    for _ in range(20):
        start = time.thread_time()
        work(100)
        times.append((time.thread_time() - start) / 100)
    return max(1, round(seconds / min(times)))


class Work(Dataset[torch.Tensor]):
    def __init__(self, work: Callable[[int], None], rounds: int, batches: int) -> None:
        self.work, self.rounds, self.batches = work, rounds, batches

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> torch.Tensor:
        self.work(self.rounds)
        return torch.zeros(16)


def ways(dataset: Dataset[Any]) -> dict[str, Iterable[Any]]:
    plain: DataLoader[Any] = DataLoader(dataset, batch_size=None)
    return {
        "plain": plain,
        "BackgroundLoader": BackgroundLoader(plain),
        "1 worker": DataLoader(dataset, batch_size=None, num_workers=1),
        "2 workers": DataLoader(dataset, batch_size=None, num_workers=2),
    }


def epoch(loader: Iterable[Any], rounds: int) -> float:
    start = 0.0
    for _ in loader:
        start = start or time.perf_counter()
        step(rounds)
    return time.perf_counter() - start


def main(rounds: int, batches: int) -> None:
    torch.set_num_threads(1)
    rows = []
    for work in (sleeping, in_python, without_gil):
        for part in PARTS:
            of_step = rounds_for(step, TOGETHER * (1 - part))
            dataset = Work(work, rounds_for(work, TOGETHER * part), batches)
            times: dict[str, list[float]] = {name: [] for name in ways(dataset)}
            for _ in range(rounds):
                for name, loader in ways(dataset).items():
                    times[name].append(epoch(loader, of_step))
            plain, *others = (median(one) for one in times.values())
            name = f"{work.__name__.replace('_', ' ')}, loader : step = {part / (1 - part):.3g}"
            shown = [f"{plain / (batches - 1) * 1000:.1f} ms"]
            rows.append([name, *shown, *(f"{other / plain:.2f}" for other in others)])
    show(
        "Wall time of an epoch, as part of that without help (below 1 is faster)",
        ["loader", "plain, a batch", "BackgroundLoader", "1 worker", "2 workers"],
        rows,
    )
    show_versions()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} (2 or more of others': no measurement)")


if __name__ == "__main__":
    given = [int(one) for one in sys.argv[1:]]
    main(*given, *(5, 40)[len(given) :])
