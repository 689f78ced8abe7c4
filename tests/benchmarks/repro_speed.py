"""What recording a run for `ptools repro` costs: plain, coarse, and each operation (--exact).

    python tests/benchmarks/repro_speed.py [--rounds 5]

CPU time of one thread in a process for each measurement, the ways interleaved, ratios of medians.
A run's first beats are recorded operation by operation in any case: `coarse` is what a step costs
after them, `coarse, whole` has them in it, over as many steps as the table says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from harness import in_fresh_process, show, show_versions
from torch import nn
from torch.nn.functional import cross_entropy

from ptools.repro.job import ALWAYS, Job
from ptools.repro.recording.recorder import Recorder
from ptools.repro.trace import TraceWriter

STEPS = {"MLP": 2000, "CNN": 40}
FIRST = 16  # steps within which a coarse run has left its first beats behind
WAYS = ["plain", "coarse", "exact"]


def mlp() -> Callable[[], None]:
    """About 0.5 ms a step, nearly all of it the calling of operations."""
    hidden = [layer for _ in range(2) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return training(nn.Sequential(*hidden, nn.Linear(64, 10)), torch.randn(32, 64))


def cnn() -> Callable[[], None]:
    """About 100 ms a step, nearly all of it arithmetic."""
    layers: list[nn.Module] = []
    for before, after in (3, 32), (32, 64), (64, 64), (64, 128):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return training(model, torch.randn(4, 3, 48, 48))


def training(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """One step of a training."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    labels = torch.randint(10, (len(x),))

    def step() -> None:
        loss = cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measured(name: str, way: str) -> tuple[float, float]:
    """CPU seconds of a step: of all steps, and of those after the first."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    step = {"MLP": mlp, "CNN": cnn}[name]()
    step()
    steps = STEPS[name]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if way != "plain":
            job = Job(folder, until=ALWAYS) if way == "exact" else Job(folder)
            writer = TraceWriter(Path(folder, "trace_0.json"))
            stack.enter_context(Recorder(writer, job).recording())
        times = [time.process_time()]
        for count in FIRST, steps - FIRST:
            for _ in range(count):
                step()
            times.append(time.process_time())
    return (times[2] - times[0]) / steps, (times[2] - times[1]) / (steps - FIRST)


def medians(name: str, rounds: int) -> dict[str, tuple[float, float]]:
    """The medians of several rounds for each way."""
    found: dict[str, list[Any]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            found[way].append(in_fresh_process(__file__, "--one", name, way))
    return {
        way: (statistics.median(whole), statistics.median(later))
        for way, rows in found.items()
        for whole, later in [zip(*rows, strict=True)]
    }


def row(name: str, rounds: int) -> list[str]:
    """Milliseconds of a plain step, and ratios to it."""
    found = medians(name, rounds)
    plain_whole, plain = found["plain"]
    ratios = [
        found["coarse"][1] / plain,
        found["coarse"][0] / plain_whole,
        found["exact"][1] / plain,
    ]
    return [name, str(STEPS[name]), f"{plain * 1e3:.2f}", *(f"{one:.2f}" for one in ratios)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(*options.one)))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    show_versions()
    columns = ["model", "steps", "plain, ms", "coarse", "coarse, whole", "exact"]
    rows = [row(name, options.rounds) for name in STEPS]
    show("CPU time of a training step, as a ratio to the plain one", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
