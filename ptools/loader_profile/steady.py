"""The rate of a loader in the steady state, with nothing in it that measures."""

import math
import statistics
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from ptools.cores import usable_cores
from ptools.errors import PtoolsError
from ptools.loader_profile import clocks
from ptools.loader_profile.rebuild import Endless
from ptools.loader_profile.report import Settings, Trial, Wait

_END = object()  # a batch may be None
_ENOUGH = 0.02  # of the rate: half the interval at which to stop early
_ROUNDS = 4  # of the workers, at the least
_PATIENT = 3  # times the seconds, for the sake of these
BUSY = 0.15  # of the cores: what others use then changes the rates
_WIDEST = 0.9  # half an interval, of the rate: such a rate is not known at all
_QUEUE = 2.0  # seconds at the least to empty it
_BLOCKS = 8
# Student's t for a 95 % interval, by degrees of freedom.
_T = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


def run(loader: Iterable[Any], settings: Settings, seconds: float, step: float = 0.0) -> Trial:
    """Iterate for `seconds`, as fast as it goes or with a consumer that takes `step` a batch.

    What is queued before the clock starts is left out, and the blocks that the interval is made of
    are whole rounds of the workers: batches arrive in bursts.

    Raises:
        PtoolsError: there is no batch.
    """
    rounds = max(settings.num_workers, 1)
    began = time.perf_counter()
    iterator = iter(loader)
    batch = next(iterator, _END)
    first = time.perf_counter() - began
    if batch is _END:
        raise PtoolsError("the loader gives no batch", hint="is its dataset empty?")
    samples = samples_in(batch, settings.batch_size)
    del batch
    queued = settings.num_workers * (settings.prefetch_factor or 0)
    _drop(iterator, max(queued, 2), step, seconds)
    workers = [worker.pid for worker in getattr(iterator, "_workers", [])]
    before = _spent(workers)
    arrivals, waits = _iterate(iterator, rounds, seconds, step)
    after = _spent(workers)
    if not waits:  # a list of a batch or two
        arrivals, waits = [0.0, first], [first]
    spent = _Spent(
        *((late - early) / len(waits) for late, early in zip(after, before, strict=True))
    )
    period, half = _interval(arrivals, rounds)
    half = min(half, _WIDEST * period)
    mean = (arrivals[-1] - arrivals[0]) / len(waits)
    others = max(0.0, (spent.machine - spent.ours) / mean)
    if isinstance(loader, DataLoader) and (sampler := _counting(loader)) is not None:
        samples = sampler.samples / max(sampler.batches, 1)
    trial = Trial(
        settings=settings,
        rate=samples / period,
        low=samples / (period + half),
        high=samples / (period - half),
        batches=len(waits),
        seconds=arrivals[-1] - arrivals[0],
        batch_samples=samples,
        wait=_waits(waits),
        startup=max(0.0, first - rounds * period),
        main_run=spent.main,
        worker_run=spent.ours - spent.main if workers else 0.0,
        others=others,
        quiet_rate=samples / _quiet_period(period, rounds, spent, others, bool(workers)),
        step=step,
    )
    shutdown = getattr(iterator, "_shutdown_workers", None)
    if shutdown is not None:
        shutdown()
    return trial


class _Spent(NamedTuple):
    """Seconds: on a core of this thread, this process with the workers, the machine; and ready."""

    main: float
    ours: float
    machine: float
    ready: float


def _spent(workers: list[int]) -> _Spent:
    here = clocks.now()
    return _Spent(
        here.run,
        time.process_time() + clocks.process_run(workers),
        clocks.machine_run(),
        clocks.process_ready(workers) if workers else here.ready,
    )


def _quiet_period(
    period: float, rounds: int, spent: _Spent, others: float, has_workers: bool
) -> float:
    """The seconds of a batch if nobody else used the cores, which then would be free or ours."""
    cores = usable_cores()
    if others < BUSY * cores:
        return period
    # This thread has one core at the most; together with workers there are all of them.
    least = max(spent.main, spent.ours / cores) if has_workers else spent.main
    return min(period, max(period - spent.ready / rounds, least))


def samples_in(batch: Any, batch_size: int | None) -> float:
    """How many samples a batch holds; 1 if it is no batch of this loader's."""
    if batch_size is not None:
        return batch_size
    shapes = [tensor.shape for tensor in tensors_in(batch)]
    lengths = {shape[0] if shape else 1 for shape in shapes}
    return lengths.pop() if len(shapes) > 1 and len(lengths) == 1 else 1


def tensors_in(batch: Any) -> Iterator[torch.Tensor]:
    """All tensors of a batch, whatever it is made of."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, dict):
        for value in batch.values():
            yield from tensors_in(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from tensors_in(value)
    elif hasattr(batch, "__dict__"):
        yield from tensors_in(vars(batch))


def _counting(loader: DataLoader[Any]) -> Endless | None:
    return loader.batch_sampler if isinstance(loader.batch_sampler, Endless) else None


def _drop(iterator: Iterator[Any], count: int, step: float, seconds: float) -> None:
    until = time.perf_counter() + max(_PATIENT * seconds, _QUEUE)
    for _ in range(count):
        if time.perf_counter() > until or next(iterator, _END) is _END:
            return
        time.sleep(step)


def _iterate(
    iterator: Iterator[Any], rounds: int, seconds: float, step: float
) -> tuple[list[float], list[float]]:
    """When batches arrived, and how long each was waited for."""
    arrivals = [time.perf_counter()]
    waits: list[float] = []
    while True:
        asked = time.perf_counter()
        if next(iterator, _END) is _END:
            return arrivals, waits
        waits.append(time.perf_counter() - asked)
        if step:
            time.sleep(step)
        arrivals.append(time.perf_counter())
        elapsed = arrivals[-1] - arrivals[0]
        if elapsed > _PATIENT * seconds:
            return arrivals, waits
        if elapsed > seconds / 2 and len(waits) % rounds == 0 and len(waits) >= _ROUNDS * rounds:
            period, half = _interval(arrivals, rounds)
            if elapsed > seconds or half < _ENOUGH * period:
                return arrivals, waits


def _interval(arrivals: list[float], rounds: int) -> tuple[float, float]:
    """Mean seconds a batch and half of its 95 % interval, from blocks of whole rounds."""
    whole = (len(arrivals) - 1) // rounds
    if whole < 2:
        period = (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)
        return period, period
    size = max(1, whole // _BLOCKS) * rounds
    marks = arrivals[::size]
    means = [(late - early) / size for early, late in pairwise(marks)]
    t = _T[min(len(means) - 1, len(_T) - 1)]
    half = t * statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else means[0]
    return statistics.fmean(means), half


def _waits(waits: list[float]) -> Wait:
    ordered = sorted(waits)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return Wait(statistics.fmean(waits), at(0.5), at(0.95), at(0.99), ordered[-1])
