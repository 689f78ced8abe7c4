"""A `LoaderProfile` as a page: is it fast enough, what holds it back, the details, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ptools.console import counted, escaped
from ptools.files import human_bytes
from ptools.loader_profile.report import LoaderProfile
from ptools.loader_profile.tables import MILLI, batch_size, figure, interval, lines, rates, stages
from ptools.tables import facts_grid

_WORTH_IT = 1.05  # times the rate, to be said
_KEEPS_UP = 0.05  # of its time that a step may wait
_VERDICTS = {
    "consumer": "it keeps up",
    "serialised": "its workers wait for each other",
    "head-of-line": "rare slow samples hold up the others",
    "balanced": "no single part holds it back",
}


def page(profile: LoaderProfile) -> RenderableType:
    """Everything that was measured, in the order in which one asks."""
    parts: list[RenderableType] = [Text(_answer(profile), style="bold"), "", _facts(profile), ""]
    if profile.stages:
        parts += [stages(profile), ""]
    for table in rates(profile):
        parts += [table, ""]
    if profile.lines:
        parts += [lines(profile.lines), ""]
    parts += [facts_grid(_notes(profile)), "", Text(_settings(profile), style="cyan")]
    return Group(*parts, Text(verdict(profile), style="bold"))


def verdict(profile: LoaderProfile) -> str:
    """The whole in one line."""
    text = f"{escaped(profile.target or 'the loader')}: {figure(profile.current.rate)} samples/s"
    if profile.verdict is not None:
        kind, part = profile.verdict.kind, escaped(profile.verdict.part or "")
        text += f", {_VERDICTS.get(kind, f'limited by {kind} {part}'.rstrip())}"
    gain = profile.advice.gain if profile.advice is not None else None
    if gain is not None and gain >= _WORTH_IT:
        text += f"; the settings above give {figure(gain)} times the rate"
    if profile.interrupted:
        text += "; INCOMPLETE: interrupted"
    return text


def _answer(profile: LoaderProfile) -> str:
    """Is the loader fast enough?"""
    if profile.with_step is None:
        step = _step(profile.current.batch_samples / profile.current.rate)
        return f"the loader keeps up with training steps of {step} or more"
    step, stall = _step(profile.with_step.step), profile.with_step.stall
    if stall < _KEEPS_UP or (profile.verdict and profile.verdict.kind == "consumer"):
        return (
            f"the loader keeps up with a step of {step}, which waits {_percent(stall)} of the time"
        )
    return f"a step of {step} waits {_percent(stall)} of the time for data"


def _time(seconds: float) -> str:
    return f"{figure(seconds)} s" if seconds >= 1 else f"{figure(seconds * MILLI)} ms"


def _step(seconds: float) -> str:
    """A time that somebody may have typed: without zeros at the end."""
    number, unit = _time(seconds).split()
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def _percent(share: float) -> str:
    return "under 1%" if 0 < share < 0.01 else f"{share:.0%}"


def _facts(profile: LoaderProfile) -> Table:
    return facts_grid(chain(_verdict_facts(profile), _rate_facts(profile), _machine_facts(profile)))


def _verdict_facts(profile: LoaderProfile) -> Iterator[tuple[str, str]]:
    if profile.verdict is None:
        yield "verdict", "not measured"
        return
    yield "verdict", f"{profile.verdict.kind} {profile.verdict.part or ''}".rstrip()
    yield "evidence", profile.verdict.evidence
    yield "do", profile.verdict.action


def _rate_facts(profile: LoaderProfile) -> Iterator[tuple[str, str]]:
    trial, wait = profile.current, profile.current.wait
    batches = f"{figure(trial.rate / trial.batch_samples)} batches/s of {batch_size(trial)}"
    yield "rate", f"{figure(trial.rate)} samples/s ({interval(trial)}), {batches}"
    known = {"p50": wait.p50, "p95": wait.p95, "p99": wait.p99, "max": wait.max}
    yield (
        "wait",
        "of next() at full speed: " + ", ".join(f"{name} {_time(t)}" for name, t in known.items()),
    )
    startup = f"{_time(trial.startup)} until the first batch"
    if profile.batches_per_epoch is not None:
        epoch = profile.batches_per_epoch * trial.batch_samples / trial.rate
        share = _percent(trial.startup / (trial.startup + epoch))
        which = "the first" if trial.settings.persistent_workers else "every"
        batches = counted(profile.batches_per_epoch, "batch", "batches")
        startup += f": {share} of {which} epoch of {batches}"
    yield "start-up", startup


def _machine_facts(profile: LoaderProfile) -> Iterator[tuple[str, str]]:
    if (batch := profile.batch) is not None:
        samples = f"{counted(batch.samples, 'sample')} in {counted(batch.tensors, 'tensor')}"
        yield "batch", f"{samples}, {human_bytes(batch.bytes)}"
        if batch.shared_bytes:
            free = f", {human_bytes(batch.shm_free)} free" if batch.shm_free is not None else ""
            yield "/dev/shm", f"{human_bytes(batch.shared_bytes)} needed{free}"
    others = f"other processes used {profile.current.others:.1f} meanwhile"
    yield "machine", f"{counted(profile.cores, 'core')}; {others}"


def _notes(profile: LoaderProfile) -> Iterator[tuple[str, str]]:
    if profile.transfer is not None:
        pageable, pinned = map(_time, (profile.transfer.pageable, profile.transfer.pinned))
        yield "to the GPU", f"a batch to {profile.transfer.device}: {pageable}, {pinned} if pinned"
    else:
        yield "to the GPU", "pin and host-to-device: not measured (no GPU)"
    if profile.stages and profile.clocks == 2:
        yield "clocks", "this system does not tell ready from waiting: both count as waiting"
    if profile.overhead is not None:
        times = f"measuring stages took {figure(profile.overhead)} times the CPU of a plain run"
        yield "overhead", f"{times}; the rates are from plain runs"
    if missing := _missing(profile):
        yield "not measured", ", ".join(missing)


def _missing(profile: LoaderProfile) -> list[str]:
    compared = profile.best is None or profile.gain is not None
    parts = {
        "where the time goes": profile.stages,
        "the rates to expect": profile.predicted,
        "other settings": _others_tried(profile),
        "the best settings in turns with the current ones": compared,
    }
    return [name for name, found in parts.items() if not found]


def _others_tried(profile: LoaderProfile) -> bool:
    now = profile.current.settings
    return profile.best is not None or any(trial.settings != now for trial in profile.trials)


def _settings(profile: LoaderProfile) -> str:
    """What to paste."""
    now = profile.current.settings
    if profile.advice is not None:
        return f"DataLoader(..., {profile.advice.settings.arguments()})"
    if profile.batch is None:
        return "no DataLoader: there are no settings to try"
    if _others_tried(profile):
        return f"keep {now.arguments()}: nothing that was tried is better"
    return f"now: {now.arguments()}; no other settings were tried"
