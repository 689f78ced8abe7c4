"""What the order of the batches costs: a DataLoader's schedule, replayed with observed times."""

import random
from collections.abc import Sequence
from statistics import median

from ptools.loader_profile.report import Settings

DEEPER = 4  # times the prefetch_factor
_BATCHES = 4000
_TAIL = 4.0  # times the median: a batch that holds up others


def gains(times: Sequence[float], settings: Settings, least: float) -> tuple[float, float]:
    """The gain of prefetching DEEPER times as much, and of any order; 1.0 if no batch stands out.

    `times` are seconds that single batches took a worker, `least` what the cores allow a batch.
    """
    workers, factor = settings.num_workers, settings.prefetch_factor or 2
    if workers < 2 or not settings.in_order or max(times) < _TAIL * median(times):
        return 1.0, 1.0
    now = max(least, period(times, workers, factor))
    deeper = max(least, period(times, workers, DEEPER * factor))
    return now / deeper, now / max(least, period(times, workers, None))


def period(times: Sequence[float], workers: int, prefetch_factor: int | None) -> float:
    """Seconds a batch for a consumer that takes none, from those that single batches took.

    As in torch's `_MultiProcessingDataLoaderIter`: batch i goes to worker i modulo `workers`, once
    the consumer has taken batch i - workers * prefetch_factor, and it takes them in order. None is
    for any order, in which no worker ever waits.
    """
    draw = random.Random(0)
    drawn = [draw.choice(times) for _ in range(_BATCHES)]
    if prefetch_factor is None:
        return sum(drawn) / workers / _BATCHES
    ready = [0.0] * workers
    taken: list[float] = []
    ahead = workers * prefetch_factor
    for number, seconds in enumerate(drawn):
        asked = taken[number - ahead] if number >= ahead else 0.0
        worker = number % workers
        ready[worker] = max(ready[worker], asked) + seconds
        taken.append(max(ready[worker], taken[-1] if taken else 0.0))
    return taken[-1] / _BATCHES
