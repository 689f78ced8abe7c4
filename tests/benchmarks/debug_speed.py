"""What the modes of `ptools debug` cost, beside `torch.autograd.detect_anomaly`.

    python tests/benchmarks/debug_speed.py [--rounds 5]

CPU time of one thread, all ways of running interleaved, the least of several rounds. The second
table has a NaN made at step 1,200 of 1,500: watching and running again, against tracing all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import show, show_versions
from torch import nn
from torch.nn.functional import cross_entropy

from ptools.debug import debug_script
from ptools.debug.inplace.mode import Inplace
from ptools.debug.mode import Log, watching
from ptools.debug.nan.mode import Nan
from ptools.debug.watch import Watch
from ptools.program.clock import Clock
from ptools.program.modules import Modules

WAYS: dict[str, Callable[[], Any]] = {
    "plain": contextlib.nullcontext,
    "detect_anomaly": torch.autograd.detect_anomaly,
    "watch": lambda: watching(Watch(Log(), Clock(), Modules())),
    "nan": lambda: watching(Nan(Log(), Clock(), Modules())),
    "inplace": lambda: watching(Inplace(Log(), Clock(), Modules())),
}
LATE = """
import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)


class Distance(nn.Module):
    def forward(self, x):
        return x.pow(2).sum(1).sqrt()


hidden = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(30)]
net = nn.Sequential(*hidden, nn.Linear(64, 8), Distance())
optimizer = torch.optim.SGD(net.parameters(), 1e-3)
for step in range(1500):
    x = torch.randn(64, 64)
    if step == 1200:
        nn.init.zeros_(net[-2].weight)
        nn.init.zeros_(net[-2].bias)
    loss = net(x).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def mlp() -> Callable[[], None]:
    """About 0.65 ms a step, nearly all of it the calling of operations."""
    torch.manual_seed(0)
    hidden = [layer for _ in range(7) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(64, 10))
    return training(model, torch.randn(64, 64))


def cnn() -> Callable[[], None]:
    """About 180 ms a step, nearly all of it arithmetic."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in (3, 32), (32, 64), (64, 64), (64, 128):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return training(model, torch.randn(4, 3, 48, 48))


def training(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """One step of a training."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    labels = torch.randint(10, (len(x),))

    def step() -> None:
        loss = cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], way: str, steps: int) -> float:
    """CPU seconds of a step."""
    with WAYS[way]():
        step()
        began = time.process_time()
        for _ in range(steps):
            step()
        return (time.process_time() - began) / steps


def ratios(step: Callable[[], None], steps: int, rounds: int) -> dict[str, float]:
    """The least CPU seconds of a step in each way."""
    least = dict.fromkeys(WAYS, float("inf"))
    for _ in range(rounds):
        for way in WAYS:
            least[way] = min(least[way], seconds(step, way, steps))
    return least


def row(name: str, least: dict[str, float]) -> list[str]:
    """Milliseconds of the plain step, ratios, and costs as parts of what detect_anomaly costs."""
    plain = least["plain"]
    anomaly = least["detect_anomaly"] - plain
    costs = [f"{(least[way] - plain) / anomaly:.2f}" for way in ("nan", "inplace")]
    return [name, f"{plain * 1e3:.2f}", *(f"{least[way] / plain:.2f}" for way in WAYS), *costs]


def late(rounds: int) -> list[list[str]]:
    """CPU seconds of finding a late NaN, with all processes, and the line that was found."""
    with tempfile.TemporaryDirectory() as folder:
        script, anomaly = Path(folder, "late.py"), Path(folder, "anomaly.py")
        script.write_text(LATE)
        anomaly.write_text(f"import torch; torch.autograd.set_detect_anomaly(True)\n{LATE}")
        finders: dict[str, Callable[[], str]] = {
            "watch and run again": lambda: line_found(script, "watch"),
            "trace everything": lambda: line_found(script, "nan"),
            "detect_anomaly in all steps": lambda: run(anomaly),
            "plain, all 1,500 steps": lambda: run(script),
        }
        least = dict.fromkeys(finders, float("inf"))
        lines = dict.fromkeys(finders, "")
        for _ in range(rounds):
            for name, find in finders.items():
                before = os.times()
                lines[name] = find()
                after = os.times()
                least[name] = min(least[name], sum(after[2:4]) - sum(before[2:4]))
    return [[name, f"{least[name]:.1f}", lines[name]] for name in finders]


def line_found(script: Path, mode: str) -> str:
    """The line that ptools names."""
    report = debug_script(str(script), mode=mode, seed=0)
    return str(report.findings[0].places[0][1].line)


def run(script: Path) -> str:
    """Run it to its end, or its error."""
    subprocess.run([sys.executable, str(script)], capture_output=True, check=False)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Anomaly Detection")
    show_versions()
    columns = ["model", "plain, ms", *WAYS, "nan / anomaly", "inplace / anomaly"]
    rows = [row("MLP", ratios(mlp(), 100, rounds)), row("CNN", ratios(cnn(), 2, rounds))]
    show("CPU time of a training step, as a ratio to the plain one; costs over it", columns, rows)
    columns = ["way", "CPU seconds", "line"]
    show("A NaN at step 1,200 of 1,500, imports of torch included", columns, late(rounds))


if __name__ == "__main__":
    sys.exit(main())
