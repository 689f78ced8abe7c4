"""What the records of a run say about each stage, and what one batch asks of the machine."""

import math
import statistics
from dataclasses import replace

from ptools.cores import usable_cores
from ptools.loader_profile.observe import Observation
from ptools.loader_profile.probe import COLLATE, Key, Record
from ptools.loader_profile.report import Demand, Stage, Trial

STORAGE = "storage", "storage"
TRANSFER = "transfer between processes", "transfer"
_FEW = 4  # batches
_LEAST = 0.002  # of the whole: what is less is not shown
_READERS = ("storage", "decode", "dataset code")


def demand(alone: Observation | None, worker: Observation, trial: Trial) -> Demand:
    """What a batch asks for, from a run without workers, if that is possible, and those with one.

    `trial` is the uninstrumented run with one worker: what it took less was spent on measuring.
    """
    share = plain(worker, trial)
    run = worker.total(_run)
    return Demand(
        run=share * run,
        waiting=worker.total(_waiting),
        helpers=share * max(0.0, worker.worker_run - run),
        main=trial.main_run,
        alone=share * (run if alone is None else alone.total(_run)),
    )


def plain(worker: Observation, trial: Trial) -> float:
    """The share of what an observed batch takes on a core that it takes unobserved."""
    return min(1.0, trial.worker_run / worker.worker_run)


def seconds(record: Record) -> float:
    """What the worker took for a batch, not counting the time without a core."""
    return sum(sums[1] + sums[3] for sums in record.stages.values())


def _run(record: Record) -> float:
    return record.run


def _waiting(record: Record) -> float:
    return sum(sums[3] for sums in record.stages.values())


def stages(
    observed: Observation, alone: Observation | None, asked: Demand, with_workers: bool
) -> tuple[Stage, ...]:
    """The stages of a sample, the longest first.

    A wait in what reads is the storage's. What collating costs in a worker beyond what it costs
    elsewhere is memory that is shared between processes: it counts as transfer.
    """
    sums = _sums(observed)
    parts: dict[Key, list[float]] = {}
    for (name, kind), (calls, run, ready, waiting) in sums.items():
        storage = kind in _READERS
        parts[name, kind] = [calls, run, ready, 0.0 if storage else waiting]
        if storage:
            part = parts.setdefault(STORAGE, [0.0, 0.0, 0.0, 0.0])
            part[0], part[3] = max(part[0], calls), part[3] + waiting
    if with_workers and COLLATE in parts:
        shared = sharing(observed, alone)
        parts[COLLATE][1] -= shared
        feeder = observed.total(lambda one: one.feeder)
        parts[TRANSFER] = [1.0, shared + feeder + asked.main, 0.0, 0.0]
    found = [
        Stage(name, kind, *(value / observed.batch_samples for value in values))
        for (name, kind), values in parts.items()
    ]
    least = _LEAST * sum(map(cost, found))
    found = [stage for stage in found if cost(stage) > least]
    return tuple(sorted(found, key=cost, reverse=True))


def cost(stage: Stage) -> float:
    """Seconds of a sample that a quiet machine would take."""
    return stage.run + stage.waiting


def without(
    asked: Demand, stage: Stage, batch_samples: float, shared: float, plain: float
) -> Demand:
    """The demand of a batch if the stage cost nothing.

    `shared` is what `sharing` gives, and `plain` the share of the observed run that is asked for.
    """
    run, waiting = stage.run * batch_samples, stage.waiting * batch_samples
    if stage.kind != "transfer":
        return replace(
            asked,
            run=max(0.0, asked.run - plain * run),
            waiting=max(0.0, asked.waiting - waiting),
            alone=max(0.0, asked.alone - plain * run),
        )
    in_worker = max(0.0, run - asked.main)
    loop = min(shared, in_worker)
    return replace(
        asked,
        run=max(0.0, asked.run - plain * loop),
        helpers=max(0.0, asked.helpers - plain * (in_worker - loop)),
        main=0.0,
    )


def cores_period(asked: Demand) -> float:
    """Seconds a batch that the cores need, if all of them are at it."""
    return (asked.run + asked.helpers + asked.main) / usable_cores()


def sharing(observed: Observation, alone: Observation | None) -> float:
    """Seconds a batch on a core to put a batch into shared memory while it is collated."""
    if alone is None:
        return 0.0
    return max(0.0, _sums(observed)[COLLATE][1] - _sums(alone)[COLLATE][1])


def hidden_run(observed: Observation) -> float:
    """Seconds a batch on a core of a worker's threads that neither loop nor send."""
    return max(0.0, observed.total(lambda one: one.process - one.run - one.feeder))


def contention(crowd: Observation, alone: Observation) -> float:
    """Seconds that a sample waits longer, at the least, when workers are several.

    The difference of the means less two standard errors, of one variance for both: rare slow
    samples come in any number. 0.0 for less than four batches.
    """
    several, single = ([_waiting(record) for record in one.records] for one in (crowd, alone))
    if len(single) < _FEW or len(several) < _FEW:
        return 0.0
    means = statistics.fmean(several), statistics.fmean(single)
    within = [wait - means[0] for wait in several] + [wait - means[1] for wait in single]
    error = statistics.stdev(within) * math.sqrt(1 / len(several) + 1 / len(single))
    return max(0.0, means[0] - means[1] - 2 * error) / crowd.batch_samples


def disk_bytes(observed: Observation) -> float:
    """Bytes a sample that were read from a disk of this machine, not from the page cache."""
    return observed.total(lambda one: one.disk_bytes) / observed.batch_samples


def ready_share(observed: Observation) -> float:
    """The share of a worker's time at work for which it has no core."""
    sums = _sums(observed).values()
    ready = sum(values[2] for values in sums)
    return ready / sum(sum(values[1:]) for values in sums)


def _sums(observed: Observation) -> dict[Key, list[float]]:
    """Calls, run, ready and waiting of each stage, a batch."""
    sums: dict[Key, list[float]] = {}
    for record in observed.records:
        for key, values in record.stages.items():
            before = sums.setdefault(key, [0.0] * 4)
            sums[key] = [a + b for a, b in zip(before, values, strict=True)]
    count = len(observed.records)
    return {key: [value / count for value in values] for key, values in sums.items()}
