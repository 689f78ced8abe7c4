"""What the findings come to: the stages with their rates, the verdict, the warnings."""

from dataclasses import replace
from statistics import median
from typing import Any

from torch.utils.data import DataLoader

from ptools.cores import usable_cores
from ptools.loader_profile import replay, stages, threads
from ptools.loader_profile.advise import advise
from ptools.loader_profile.clocks import CLOCKS
from ptools.loader_profile.consumer import transfer
from ptools.loader_profile.facts import Facts
from ptools.loader_profile.lines import top
from ptools.loader_profile.model import predict
from ptools.loader_profile.phases import Findings
from ptools.loader_profile.report import Line, LoaderProfile, Stage, Trial
from ptools.loader_profile.runs import certain
from ptools.loader_profile.verdict import decide


def conclude(
    loader: DataLoader[Any], found: Findings, target: str, interrupted: bool
) -> LoaderProfile:
    """The profile that these findings make; a part of one if they are a part."""
    current, turns = found.current, found.turns
    assert current is not None
    batches = _batches_per_epoch(loader)
    parts = _stages(found)
    facts = None if found.demand is None else _facts(found, parts, batches)
    verdict = None if facts is None else decide(facts)
    several = current.settings.num_workers > 1 and found.crowd is not None
    observed = found.crowd if several else found.worker
    return LoaderProfile(
        target=target,
        cores=usable_cores(),
        clocks=CLOCKS,
        current=current,
        batches_per_epoch=batches,
        batch=found.batch,
        with_step=found.with_step,
        stages=parts,
        demand=found.demand,
        overhead=_overhead(found),
        predicted=found.predicted,
        trials=tuple(found.trials),
        best=found.best,
        gain=median(turns) if turns else None,
        gain_certain=bool(turns) and len({turn > 1 for turn in turns}) == 1,
        verdict=verdict,
        advice=advise(facts, verdict) if facts and verdict else None,
        lines=_lines(found),
        transfer=None if interrupted else transfer(loader),
        warnings=(*found.warnings, *_hazards(found)),
        interrupted=interrupted,
        spans=observed.spans() if observed is not None else (),
    )


def _batches_per_epoch(loader: DataLoader[Any]) -> int | None:
    try:
        return len(loader)
    except TypeError:  # a stream
        return None


def _stages(found: Findings) -> tuple[Stage, ...]:
    """The stages, each with the rate that its absence would give."""
    demand, current = found.demand, found.current
    if demand is None or found.worker is None or current is None:
        return ()
    workers = current.settings.num_workers
    observed = found.worker if workers or found.alone is None else found.alone
    parts = stages.stages(observed, found.alone, demand, bool(workers))
    shared = stages.sharing(found.worker, found.alone)
    plain = stages.plain(found.worker, found.single) if found.single else 1.0
    cores = usable_cores()
    now = predict(demand, workers, cores)

    def rate_without(part: Stage) -> float:
        left = stages.without(demand, part, observed.batch_samples, shared, plain)
        return current.rate * predict(left, workers, cores) / now

    return tuple(replace(part, without=rate_without(part)) for part in parts)


def _overhead(found: Findings) -> float | None:
    if found.worker is None or found.single is None or not found.single.worker_run:
        return None
    return found.worker.worker_run / found.single.worker_run


def _facts(found: Findings, parts: tuple[Stage, ...], batches: int | None) -> Facts:
    current, crowd = found.current, found.crowd
    assert current is not None and found.demand is not None
    rates = {trial.settings.num_workers: trial.quiet_rate for trial in (current, *found.trials)}
    settings = current.settings
    several = crowd.settings.num_workers if crowd else 0
    observed = [one for one in (crowd, found.worker) if one is not None]
    times = [stages.seconds(record) for one in observed for record in one.records]
    deeper, any_order = replay.gains(times, settings, stages.cores_period(found.demand))
    return Facts(
        current=current,
        with_step=found.with_step,
        stages=parts,
        best=found.best,
        gain=median(found.turns) if found.turns else 1.0,
        sure_gain=certain(found.turns),
        predicted=found.predicted,
        cores=usable_cores(),
        busy=found.is_busy,
        epoch=None if batches is None else batches * _period(found.with_step or current),
        ready=stages.ready_share(crowd) if crowd else 0.0,
        contention=stages.contention(crowd, found.worker) if crowd and found.worker else 0.0,
        contended=(several, rates[several]) if several in rates else None,
        deeper=replace(settings, prefetch_factor=replay.DEEPER * (settings.prefetch_factor or 2)),
        deeper_gain=deeper,
        any_order=any_order,
        disk_bytes=stages.disk_bytes(found.worker) if found.worker else 0.0,
        one_thread=found.one_thread,
        thread_advice=threads.advice(),
    )


def _period(trial: Trial) -> float:
    """Seconds a batch, with the step if there is one."""
    return trial.batch_samples / trial.rate


def _lines(found: Findings) -> tuple[Line, ...]:
    if found.observed_lines is None:
        return ()
    seconds: dict[tuple[str, int], float] = {}
    for record in found.observed_lines.records:
        for place, spent in record.lines.items():
            seconds[place] = seconds.get(place, 0.0) + spent
    return top(seconds)


def _hazards(found: Findings) -> list[str]:
    """What makes figures of this profile doubtful."""
    current = found.current
    assert current is not None
    said = []
    if found.is_busy:
        said.append(
            f"the machine is busy: other processes used {current.others:.1f} of {usable_cores()} "
            "cores; the rates are low, what ran and what waited is right"
        )
    if current.high - current.low > 0.3 * current.rate:
        said.append("the rate varies by more than 15 %: a larger --budget measures longer")
    return said
