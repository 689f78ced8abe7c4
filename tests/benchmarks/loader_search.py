"""How good the short search for the number of workers is, beside trying them all.

Run `python tests/benchmarks/loader_search.py [SECONDS]` (0.5 a measurement if not given).

The loaders are real, the eight cores are not: a sample that wants a core sleeps while it holds one
of eight tokens, so that the machine's own cores do not matter. To the kernel that looks like
waiting, and what the model predicts is far too high where cores bind: the search has to find out.
All numbers of workers from 0 to 16 are then measured, in two rounds whose mean counts.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import show, show_versions
from torch.utils.data import DataLoader, Dataset

from ptools.loader_profile.model import predict
from ptools.loader_profile.report import Demand
from ptools.loader_profile.search import chosen, next_workers

CORES, LIMIT, BATCH = 8, 16, 4
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Case:
    """A loader; milliseconds a sample, those of the consumer a batch."""

    name: str
    run: float = 0.0
    waiting: float = 0.0
    locked: float = 0.0
    receive: float = 0.0  # if a worker has sent it

    def demand(self) -> Demand:
        """What the kernel's clocks tell: all sleep is waiting, the consumer's time its own."""
        waiting = BATCH * (self.run + self.waiting + self.locked) / 1e3
        return Demand(0.0, waiting, helpers=0.0, main=self.receive / 1e3, alone=0.0)


class Samples(Dataset):
    def __init__(self, case: Case) -> None:
        self.case = case
        self.cores, self.lock = FORK.Semaphore(CORES), FORK.Lock()

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.case.waiting:
            pause(self.case.waiting)
        if self.case.locked:
            with self.lock:
                pause(self.case.locked)
        if self.case.run:
            with self.cores:
                pause(self.case.run)
        return torch.zeros(8)


def pause(milliseconds: float) -> None:
    time.sleep(milliseconds * random.uniform(0.5, 1.5) / 1e3)


def rate(case: Case, workers: int, seconds: float) -> float:
    """Batches a second in the steady state, over whole rounds of the workers."""
    context = FORK if workers else None
    loader = DataLoader(Samples(case), BATCH, num_workers=workers, multiprocessing_context=context)
    batches = iter(loader)

    def take(count: int) -> None:
        for _ in range(count):
            next(batches)
            if workers and case.receive:
                time.sleep(case.receive / 1e3)

    per_round = max(1, workers)
    take(2 * per_round)
    start = time.perf_counter()
    rounds = 0
    while rounds < 4 or time.perf_counter() - start < seconds:
        take(per_round)
        rounds += 1
    return rounds * per_round / (time.perf_counter() - start)


def search(measure: Callable[[int], float], demand: Demand) -> dict[int, float]:
    """What is tried for a loader that has two workers now."""
    tried = {workers: measure(workers) for workers in (2, 1)}
    predicted = {workers: predict(demand, workers, CORES) for workers in range(LIMIT + 1)}
    while (workers := next_workers(tried, predicted, LIMIT)) is not None:
        tried[workers] = measure(workers)
    return tried


CASES = (
    Case("bound by cores", run=4),
    Case("bound by latency", run=0.3, waiting=6),
    Case("half and half", run=2, waiting=3),
    Case("one lock for all", run=3, locked=1),
    Case("bound by the consumer", run=3, receive=3),
    Case("sending dominates", run=0.5, receive=8),
)


def main(seconds: str = "0.5") -> None:
    warnings.filterwarnings("ignore", "This DataLoader will create")
    show_versions("ptools")
    rows = []
    for case in CASES:
        start = time.perf_counter()
        tried = search(
            lambda workers, case=case: rate(case, workers, float(seconds)), case.demand()
        )
        taken = time.perf_counter() - start
        rounds = [[rate(case, n, float(seconds)) for n in range(LIMIT + 1)] for _ in range(2)]
        rates = [sum(pair) / 2 for pair in zip(*rounds, strict=True)]
        best, found = max(range(LIMIT + 1), key=rates.__getitem__), chosen(tried)
        share = f"{rates[found] / rates[best]:.0%}"
        order = " ".join(map(str, tried))
        rows.append([case.name, order, f"{taken:.0f}", str(found), str(best), share])
    columns = ["", "runs, in order", "seconds", "chosen", "exhaustive best", "rate / best"]
    show("The number of workers, 0 to 16, on 8 virtual cores", columns, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
