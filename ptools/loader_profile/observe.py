"""A run in which every part of the work is timed."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ptools.loader_profile.find import instrument, instrument_readers
from ptools.loader_profile.probe import (
    ProbedBatches,
    ProbedCollate,
    ProbedSamples,
    ProbedStream,
    Record,
)
from ptools.loader_profile.rebuild import rebuilt
from ptools.loader_profile.report import Settings, Span

_FEW = 4  # batches of each worker at the least


@dataclass(frozen=True)
class How:
    """How closely to look."""

    each_sample: bool = True
    transforms: bool = True
    lines: bool = False


@dataclass(frozen=True)
class Observation:
    """What came of a run: a record for each batch that came in the steady state."""

    settings: Settings
    records: list[Record]
    waits: list[tuple[float, float]]  # of the consumer: from, to
    batch_samples: float

    @property
    def worker_run(self) -> float:
        """Seconds on a core of a worker process, a batch, with all its threads."""
        return statistics.fmean(record.process for record in self.records)

    def total(self, pick: Callable[[Record], float]) -> float:
        """The mean over the batches."""
        return statistics.fmean(pick(record) for record in self.records)

    def spans(self) -> tuple[Span, ...]:
        """What took place, for a trace."""
        found = []
        for number, record in enumerate(self.records):
            lane = f"worker {record.worker}" if record.worker >= 0 else "main"
            found.append(Span(lane, "fetch", record.began, record.collated, number))
            found.append(Span(lane, "collate", record.collated, record.ended, number))
        if self.settings.num_workers:
            found += [
                Span("main", "wait", start, end, number)
                for number, (start, end) in enumerate(self.waits)
            ]
        return tuple(found)


@dataclass
class _Init:
    """A worker_init_fn that instruments what the worker has got, after the user's own."""

    init: Callable[[int], None] | None
    transforms: bool

    def __call__(self, worker_id: int) -> None:
        if self.init is not None:
            self.init(worker_id)
        info = get_worker_info()
        assert info is not None  # this is a worker
        instrument(_innermost(info.dataset), self.transforms)


def observe(
    loader: DataLoader[Any], settings: Settings, seconds: float, batch_samples: float, how: How
) -> Observation:
    """Iterate for `seconds`, a Record a batch; this process is left instrumented."""
    probed = rebuilt(
        loader,
        settings,
        dataset=_probed(loader.dataset, how),
        collate_fn=ProbedCollate(loader.collate_fn, instrument_readers),
        worker_init_fn=_Init(loader.worker_init_fn, how.transforms),
    )
    if settings.num_workers == 0:
        torch.set_num_threads(1)  # as in a worker; threads that wait for work would count as work
        instrument(loader.dataset, how.transforms)
    iterator = iter(probed)
    records: list[Record] = []
    waits = []
    until: float | None = None
    enough = _FEW * max(settings.num_workers, 1)
    while until is None or len(records) < enough or time.perf_counter() < until:
        asked = time.perf_counter()
        _, record = next(iterator)
        if not record.is_first:
            until = until or asked + seconds
            records.append(record)
            waits.append((asked, time.perf_counter()))
        if until is not None and time.perf_counter() > until + seconds and records:
            break
    shutdown = getattr(iterator, "_shutdown_workers", None)
    if shutdown is not None:
        shutdown()
    return Observation(settings, records, waits, batch_samples)


def _probed(dataset: Any, how: How) -> Any:
    if isinstance(dataset, IterableDataset):
        return ProbedStream(dataset, how.lines)
    at_once = not how.each_sample or hasattr(dataset, "__getitems__")
    return (ProbedBatches if at_once else ProbedSamples)(dataset, how.lines)


def _innermost(dataset: Any) -> Any:
    """The user's own dataset in what stands for it."""
    while type(dataset).__module__.startswith(__package__ or "ptools"):
        dataset = dataset.dataset
    return dataset
