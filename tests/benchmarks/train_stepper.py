"""What the Stepper costs: CPU time of a training step against the loop written by hand.

    python tests/benchmarks/train_stepper.py [--rounds 7]

An MLP whose batch takes half a millisecond on one thread, nearly all of it the calling of
operations. One process, the ways in turn in short rounds; ratios of medians. Bar: 1.05.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import show, show_versions
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from ptools import train

BATCHES, SIZE, CLIP = 400, 32, 1.0


def mlp() -> tuple[nn.Module, torch.optim.Optimizer]:
    """About 0.5 ms a batch."""
    torch.manual_seed(0)
    hidden = [layer for _ in range(2) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(64, 10))
    return model, torch.optim.Adam(model.parameters(), 1e-3)


def by_hand(batches: Any, accum: int) -> Callable[[], float]:
    """An epoch in plain torch."""
    model, optimizer = mlp()

    def epoch() -> float:
        for number, (x, y) in enumerate(batches, 1):
            with torch.autocast("cpu", enabled=False):
                loss = cross_entropy(model(x), y)
            (loss / accum if accum > 1 else loss).backward()
            if number % accum == 0:
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
        return loss.item()

    return epoch


def by_stepper(session: train.Session, batches: Any, accum: int) -> Callable[[], float]:
    """The same epoch by a Stepper."""
    model, optimizer = mlp()
    step = session.stepper(model, optimizer, accum=accum, clip=CLIP)

    def epoch() -> float:
        for x, y in batches:
            with step:
                loss = cross_entropy(model(x), y)
            step(loss)
        return loss.item()

    return epoch


def medians(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """CPU seconds of a batch for each way."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        losses = set()
        for way, epoch in ways.items():
            begun = time.process_time()
            losses.add(epoch())
            if number:  # the first warms up
                found[way].append((time.process_time() - begun) / BATCHES)
        assert len(losses) == 1, "they do not train alike"
    return {way: statistics.median(times) for way, times in found.items()}


def row(session: train.Session, accum: int, is_loaded: bool, rounds: int) -> list[str]:
    """Milliseconds of a batch by hand and by the Stepper, and their ratio."""
    data = TensorDataset(torch.randn(BATCHES * SIZE, 64), torch.randint(10, (BATCHES * SIZE,)))
    ours: Any = session.loader(data, SIZE)
    theirs: Any = DataLoader(data, SIZE)
    if not is_loaded:
        ours = theirs = list(theirs)
    ways = {"hand": by_hand(theirs, accum), "ours": by_stepper(session, ours, accum)}
    found = medians(ways, rounds)
    how = "Stepper and loader" if is_loaded else "Stepper"
    times = (f"{one * 1e3:.3f}" for one in found.values())
    return [how, str(accum), *times, f"{found['ours'] / found['hand']:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    show_versions()
    with train.session() as session:
        ways = [(is_loaded, accum) for is_loaded in (False, True) for accum in (1, 4)]
        rows = [row(session, accum, is_loaded, rounds) for is_loaded, accum in ways]
    columns = ["what", "accum", "by hand, ms", "ptools.train, ms", "ratio"]
    show("CPU time of a batch, with clipping at each step", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
