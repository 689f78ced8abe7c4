"""Peak memory and time of N blocks, plain and checkpointed in sqrt(N) segments.

    python tests/benchmarks/train_memory.py [--batch 4096] [--rounds 7]

Run on the CPU. A block is a linear layer of 64, a batch norm and a GELU. The peak is that of the
running sum of all that torch's profiler sees allocated and released in the second training step,
on top of parameters, gradients and the batch. The time is the CPU time of one thread, the least of
several steps, the two ways interleaved. Gradients must be the same bits, or the script fails.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from harness import show, show_versions
from torch import nn

from ptools.train.memory.checkpointing import checkpoint_sequential_sqrt

COUNTS = (4, 16, 64)
WIDTH = 64


def blocks(count: int) -> nn.Sequential:
    torch.manual_seed(0)
    parts = (nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.GELU())
    return nn.Sequential(*(nn.Sequential(*copy.deepcopy(parts)) for _ in range(count)))


def train(model: nn.Module, x: torch.Tensor) -> None:
    model.zero_grad(set_to_none=False)
    model(x).square().sum().backward()


def peak(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes alive at the peak of a step."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        train(model, x)
    events = [one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def seconds(model: nn.Module, x: torch.Tensor) -> float:
    start = time.process_time()
    train(model, x)
    return time.process_time() - start


def row(count: int, x: torch.Tensor, rounds: int) -> tuple[list[str], int, int]:
    plain = blocks(count)
    saving = checkpoint_sequential_sqrt(copy.deepcopy(plain))
    for model in (plain, saving):
        train(model, x)
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), "the gradients differ"
    times = [(seconds(plain, x), seconds(saving, x)) for _ in range(rounds)]
    slow, fast = min(two for _, two in times), min(one for one, _ in times)
    most, least = peak(plain, x), peak(saving, x)
    mib = [f"{most / 2**20:.1f}", f"{least / 2**20:.1f}", f"{least / most:.2f}"]
    took = [f"{1e3 * fast:.0f}", f"{1e3 * slow:.0f}", f"{slow / fast:.2f}"]
    return [str(count), *mib, *took], most, least


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(options.batch, WIDTH)
    rows = [row(count, x, options.rounds) for count in COUNTS]
    columns = ["blocks", "plain, MiB", "sqrt, MiB", "ratio", "plain, ms", "sqrt, ms", "ratio"]
    show(
        f"Peak memory and time of a step, batch {options.batch}", columns, [one[0] for one in rows]
    )
    growth = [f"{rows[-1][at] / rows[0][at]:.1f}" for at in (1, 2)]
    print(f"from {COUNTS[0]} to {COUNTS[-1]} blocks: plain x{growth[0]}, sqrt x{growth[1]}")
    show_versions()


if __name__ == "__main__":
    main()
