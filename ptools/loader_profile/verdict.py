"""What holds a loader back: one name, its evidence, and what to do about it."""

from collections.abc import Callable

from ptools.files import human_bytes
from ptools.loader_profile.facts import (
    WORTH,
    Facts,
    deeper_suffices,
    expected_rate,
    fewer_workers,
    parts,
)
from ptools.loader_profile.report import Verdict

_AMPLE = 1.5  # times the rate that a step asks for
_LARGEST = 0.4  # of a sample's cost: below it no part stands out
_WAITS = 0.5  # of a sample's cost: storage, rather than too few workers

_ADVICE = {
    "storage": "keep the files nearer, or in fewer and larger ones (ptools pack-lmdb)",
    "decode": "store smaller images, or decode with a faster library",
    "transform": "make {name} cheaper, run it once before training, or on the GPU",
    "dataset code": "--lines names the lines that take its time",
    "collate": "return tensors of one shape, so that collating is one copy",
    "transfer": "send fewer and larger tensors: each costs the same, whatever its size",
}
_NOT_THE_DISK = "have more of it under way at once, or find what it waits for: --lines"


def decide(facts: Facts) -> Verdict:
    """The first rule that applies."""
    for rule in _RULES:
        if (found := rule(facts)) is not None:
            return found
    return _balanced(facts)


def _consumer(facts: Facts) -> Verdict | None:
    trial = facts.with_step
    if trial is None:
        return None
    # On a busy machine the model knows better what the loader could do.
    could = facts.busy and expected_rate(facts, facts.current.settings) * trial.step > (
        _AMPLE * trial.batch_samples
    )
    if 1 / (1 - trial.stall) >= WORTH and not could:
        return None
    return Verdict(
        "consumer",
        None,
        f"a step of {_ms(trial.step)} waits {trial.stall:.0%} of the time for its data",
        "nothing to do here: the training step itself is what takes the time",
        1.0,
    )


def _start_up(facts: Facts) -> Verdict | None:
    gain = facts.start_up_gain
    others = max([facts.gain, *(one for _, one in parts(facts).values())])
    without_workers = facts.best is not None and facts.best.settings.num_workers == 0
    if facts.epoch is None or gain < max(WORTH, others) or without_workers:
        return None
    return Verdict(
        "start-up",
        None,
        f"the workers take {facts.current.startup:.2f} s to start, in every epoch of "
        f"{facts.epoch:.2f} s",
        "persistent_workers=True starts them once",
        gain,
    )


def _serialised(facts: Facts) -> Verdict | None:
    if facts.contended is None:
        return None
    workers, rate = facts.contended
    expected = facts.predicted.get(workers, rate)
    cost = sum(stage.run + stage.waiting for stage in facts.stages)
    # On a busy machine a thread waits for the interpreter's lock while its holder has no core.
    least = 0.5 if facts.busy else 0.2
    if rate > 0.8 * expected or facts.contention < least * cost:
        return None
    if facts.disk_bytes >= 1 and _storage_waits(facts) >= _LARGEST * cost:
        return None  # what they share is the disk
    return Verdict(
        "serialised",
        None,
        f"each of {workers} workers waits {_ms(facts.contention)} a sample longer than one alone:"
        f" {rate:.0f} samples/s where {expected:.0f} were possible",
        "look for what they share: a lock, a connection, a file or database opened before the "
        "workers started; open it in each worker",
        expected / rate,
    )


def _head_of_line(facts: Facts) -> Verdict | None:
    gain = facts.deeper_gain if deeper_suffices(facts) else facts.any_order
    if gain < WORTH:
        return None
    how, action = "when batches come in any order", "in_order=False, if order may vary with timing"
    if deeper_suffices(facts):
        factor = facts.deeper.prefetch_factor
        how, action = "with more batches ahead", f"prefetch_factor={factor}, which takes memory"
    return Verdict(
        "head-of-line",
        None,
        f"rare slow samples keep finished batches waiting: about {gain:.1f} x the rate {how}",
        f"{action}; or make the slow samples faster",
        gain,
    )


def _threads(facts: Facts) -> Verdict | None:
    if facts.one_thread < max(WORTH, facts.sure_gain):
        return None
    return Verdict(
        "too many workers or threads",
        None,
        f"libraries start threads in every worker: {facts.one_thread:.2f} x the rate without them",
        facts.thread_advice,
        facts.one_thread,
    )


def _too_many(facts: Facts) -> Verdict | None:
    count, fewer = facts.current.settings.num_workers, fewer_workers(facts)
    if fewer is None:
        return None
    if facts.best and facts.best.settings.num_workers == fewer and facts.gain >= WORTH:
        evidence = f"{_workers(fewer)} give {facts.gain:.2f} x the rate of {count}"
    else:
        evidence = (
            f"{count} workers share {facts.cores} cores: {facts.ready:.0%} of the time none is "
            f"free, and {_workers(fewer)} keep them as busy"
        )
    action = f"num_workers={fewer}"
    return Verdict("too many workers or threads", None, evidence, action, max(1.0, facts.gain))


def _workers_needed(facts: Facts) -> Verdict | None:
    best, current = facts.best, facts.current
    if best is None or best.settings.num_workers <= current.settings.num_workers:
        return None
    # A busy machine gives more of itself to more processes: the model does not believe that.
    expected = expected_rate(facts, best.settings) / expected_rate(facts, current.settings)
    gain = facts.gain
    if min(expected, gain) < WORTH:
        return None
    cost = sum(stage.run + stage.waiting for stage in facts.stages)
    waits = _storage_waits(facts)
    count = best.settings.num_workers
    much = f"{gain:.2f} x the rate" + (", if the machine were not busy" if facts.busy else "")
    if waits < _WAITS * cost:
        evidence = f"{_workers(count)} give {much}"
        return Verdict("too few workers", None, evidence, f"num_workers={count}", gain)
    return Verdict(
        "storage",
        None,
        f"a sample waits {_ms(waits)}, {waits / cost:.0%} of its time, {_for_what(facts)}",
        f"num_workers={count} has more reads under way at once: {much}",
        gain,
    )


def _storage_waits(facts: Facts) -> float:
    """Seconds a sample."""
    return sum(stage.waiting for stage in facts.stages if stage.kind == "storage")


def _for_what(facts: Facts) -> str:
    if facts.disk_bytes >= 1:
        return f"while {human_bytes(facts.disk_bytes)} of it come from the disk"
    return "for no disk of this machine: the network, a lock, or a sleep"


def _part(facts: Facts) -> Verdict | None:
    found = parts(facts)
    if not found:
        return None
    cost = sum(stage.run + stage.waiting for stage in facts.stages)
    (kind, name), (spent, gain) = max(found.items(), key=lambda item: (item[1][1], item[1][0]))
    if gain < WORTH or spent < _LARGEST * cost:
        return None
    advice = _ADVICE[kind].format(name=name)
    if kind == "transfer" and facts.best and facts.best.settings.num_workers == 0:
        advice = f"num_workers=0 ({facts.gain:.2f} x): what workers save, sending costs"
    evidence = f"it takes {_ms(spent)} a sample, {spent / cost:.0%} of the time"
    if kind == "storage":
        evidence += f", {_for_what(facts)}"
        advice = advice if facts.disk_bytes >= 1 else _NOT_THE_DISK
    return Verdict(
        kind,
        name or None,
        f"{evidence}; without it {gain:.2f} x the rate",
        advice,
        gain,
    )


def _balanced(facts: Facts) -> Verdict:
    found = parts(facts)
    cost = sum(spent for spent, _ in found.values())
    evidence = "other settings are no faster"
    if found:
        (kind, name), (spent, _) = max(found.items(), key=lambda item: item[1][0])
        part = f"{kind} {name}".rstrip()
        evidence = f"the largest part, {part}, takes {spent / cost:.0%}; {evidence}"
    return Verdict("balanced", None, evidence, "a faster machine, or less work a sample", 1.0)


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


_RULES: tuple[Callable[[Facts], Verdict | None], ...] = (
    _consumer,
    _start_up,
    _threads,  # first: who waits for threads without a core waits for no sample and no worker
    _head_of_line,
    _serialised,
    _too_many,
    _workers_needed,
    _part,
)
