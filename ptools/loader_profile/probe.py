"""What times the parts of a loader's work, in the process that does it.

`timed` keeps the time of what is called within out of the caller's: each stage has its own alone.
A `Record` goes along with each batch, so that nothing must be shared between processes.
"""

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from ptools.loader_profile import clocks
from ptools.loader_profile.clocks import Clock
from ptools.loader_profile.lines import LineSampler
from ptools.loader_profile.rebuild import StandIn

# Of multiprocessing: what pickles batches, and what hands out their shared memory.
_SENDERS = "QueueFeederThread", "(_serve)"

Key = tuple[str, str]  # name and kind of a stage


@dataclass
class Record:
    """What one batch took, in seconds."""

    worker: int  # -1 if it is no worker
    is_first: bool  # of its worker: what it took since the one before is not known
    began: float  # of time.perf_counter: the first sample was asked for
    collated: float  # collate was called
    ended: float
    stages: dict[Key, list[float]]  # calls, run, ready, waiting
    samples: list[float]  # of each sample or batch fetched: run + waiting
    run: float  # of the loop since the batch before, with what lies between batches
    feeder: float  # of the threads that send
    process: float  # of all threads
    disk_bytes: float  # that this process read from a disk of this machine
    lines: dict[tuple[str, int], float]


class _Probe:
    """The counters of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.thread = threading.get_ident()
        self.inner: list[list[float]] = []  # of each call under way: run, ready, waiting within
        self.stages: dict[Key, list[float]] = {}
        self.samples: list[float] = []
        self.began: float | None = None
        self.totals: tuple[float, float, float, float] | None = None
        self.sampler: LineSampler | None = None

    def add(self, key: Key, spent: Clock, inner: list[float]) -> None:
        parts = spent.run, spent.ready, spent.waiting
        sums = self.stages.setdefault(key, [0, 0.0, 0.0, 0.0])
        sums[0] += 1
        for number, (whole, within) in enumerate(zip(parts, inner, strict=True), start=1):
            sums[number] += max(0.0, whole - within)
        if self.inner:
            for number, whole in enumerate(parts):
                self.inner[-1][number] += whole

    def take(self, collated: float) -> Record:
        """The record of the batch that has just been collated."""
        info = get_worker_info()
        totals = _totals()
        before = self.totals or totals
        run, feeder, process, disk_bytes = (
            late - early for late, early in zip(totals, before, strict=True)
        )
        record = Record(
            worker=-1 if info is None else info.id,
            is_first=self.totals is None,
            began=self.began or collated,
            collated=collated,
            ended=time.perf_counter(),
            stages=self.stages,
            samples=self.samples,
            run=run,
            feeder=feeder,
            process=process,
            disk_bytes=disk_bytes,
            lines=self.sampler.take() if self.sampler else {},
        )
        self.stages, self.samples, self.began, self.totals = {}, [], None, totals
        return record


_probe: _Probe | None = None


def _here() -> _Probe:
    global _probe
    if _probe is None or _probe.pid != os.getpid():
        _probe = _Probe()
    return _probe


def _totals() -> tuple[float, float, float, float]:
    """Seconds on a core of this thread, of the one that sends, of all; and bytes from the disk."""
    feeder = sum(
        clocks.thread_run(thread.native_id)
        for thread in threading.enumerate()
        if thread.native_id is not None and thread.name.endswith(_SENDERS)
    )
    blocks = resource.getrusage(resource.RUSAGE_SELF).ru_inblock  # of 512 bytes, also for mmap
    return time.thread_time(), feeder, time.process_time(), 512.0 * blocks


def timed(key: Key, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `function` and count its time under `key`."""
    probe = _here()
    if threading.get_ident() != probe.thread:  # a pool of the user's; its time shows as helpers'
        return function(*args, **kwargs)
    probe.inner.append([0.0, 0.0, 0.0])
    start = clocks.now()
    try:
        return function(*args, **kwargs)
    finally:
        spent = clocks.now().since(start)
        probe.add(key, spent, probe.inner.pop())


DATASET = "dataset code", "dataset code"
COLLATE = "collate", "collate"


def _fetched(function: Callable[..., Any], lines: bool, *args: Any) -> Any:
    probe = _here()
    if probe.began is None:
        probe.began = time.perf_counter()
        if lines and probe.sampler is None:
            probe.sampler = LineSampler()
            probe.sampler.start()
    start = clocks.now()
    try:
        return timed(DATASET, function, *args)
    finally:
        spent = clocks.now().since(start)
        probe.samples.append(spent.run + spent.waiting)


class _Probed(StandIn):
    def __init__(self, dataset: Any, lines: bool) -> None:
        self.__dict__.update(dataset=dataset, lines=lines)


class ProbedSamples(_Probed):
    """A dataset whose samples are timed one by one."""

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return _fetched(self.dataset.__getitem__, self.lines, index)


class ProbedBatches(ProbedSamples):
    """A dataset whose samples are timed a batch at once: it makes them so, or they cost little."""

    def __getitems__(self, indices: list[Any]) -> Any:
        return _fetched(self._batch, self.lines, indices)

    def _batch(self, indices: list[Any]) -> Any:
        whole = getattr(self.dataset, "__getitems__", None)
        return whole(indices) if whole else [self.dataset[index] for index in indices]


class ProbedStream(_Probed, IterableDataset[Any]):
    """An IterableDataset whose samples are timed."""

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.dataset)
        end = object()
        while (sample := _fetched(next, self.lines, iterator, end)) is not end:
            yield sample


class ProbedCollate:
    """Times the collate function and sends a Record along with the batch."""

    def __init__(self, collate_fn: Callable[[Any], Any], after_first: Callable[[], None]) -> None:
        self.collate_fn = collate_fn
        self.after_first = after_first

    def __call__(self, samples: Any) -> tuple[Any, Record]:
        collated = time.perf_counter()
        batch = timed(COLLATE, self.collate_fn, samples)
        record = _here().take(collated)
        if record.is_first:
            self.after_first()
        return batch, record


class Timed:
    """A callable that counts its time; it passes for the one that it holds."""

    def __init__(self, key: Key, function: Callable[..., Any]) -> None:
        self.key = key
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return timed(self.key, self.function, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("key", "function") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.function, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # for a library that looks with isinstance
        return type(self.function)
