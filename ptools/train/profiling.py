"""Which lines and modules of a script the time of its operations goes to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import torch

from ptools.console import warn
from ptools.errors import UsageError
from ptools.files import atomic_write
from ptools.train.sites import Site, Sites
from ptools.train.timing import aligned, shown_seconds

_USER_SCOPE = 7  # RecordScope::USER_SCOPE: what a record_function in Python makes
_SHOWN = 12
_TEXT = 48  # characters of a line's text


@dataclass(frozen=True)
class Row:
    """What operations called from one line, or in one module, took in all recorded steps."""

    name: str  # train.py:12, or Net.head.0; empty if there is none
    source: str  # the text of the line
    calls: int  # of the forward
    cpu_seconds: float
    cpu_backward_seconds: float  # part of it: what the backward of these operations took
    device_seconds: float
    device_backward_seconds: float


@dataclass(frozen=True)
class Profile:
    """Self times of all operations of the recorded steps, the longest first."""

    trace: Path  # for chrome://tracing or ui.perfetto.dev
    steps: int
    lines: tuple[Row, ...]
    modules: tuple[Row, ...]
    outside_seconds: float  # between operations: Python, and waiting for a loader or a device

    def to_dict(self) -> dict[str, Any]:
        """Plain data; times in seconds."""
        return {**asdict(self), "trace": str(self.trace)}

    def __str__(self) -> str:
        tables = [
            _table("module", self.modules, self.steps),
            _table("line", self.lines, self.steps),
        ]
        outside = shown_seconds(self.outside_seconds / self.steps)
        last = f"times of a step, of {self.steps} recorded; {outside} outside of operations"
        return "\n\n".join([*tables, f"{last}\ntrace: {self.trace}"])


class profile:
    """Record some steps of a training: a Chrome trace, and a table by module and by line.

    Call `step` after each step. When the last is recorded the trace is written and `report` is
    there; what comes after is no longer slowed down. The backward of an operation counts for the
    line and the module of its forward. What a compiled model does has no lines.

    Args:
        steps: how many to let pass, to warm up and to record; a number alone records so many after
            one of each.
        folder: for the trace; made if it is not there.

    Raises:
        UsageError: no step would be recorded, or the folder is a file.

    Example:
        >>> with profile(steps=5, folder="profiles") as profiler:
        ...     for x, y in loader:
        ...         train(x, y)
        ...         profiler.step()
        >>> print(profiler.report)
    """

    def __init__(
        self, steps: int | tuple[int, int, int] = 5, folder: str | Path = "profiles"
    ) -> None:
        wait, warmup, active = (1, 1, steps) if isinstance(steps, int) else steps
        if min(wait, warmup) < 0 or active < 1:
            raise UsageError(f"steps={steps} records no step", hint="steps=5, or steps=(1, 1, 5)")
        if Path(folder).exists() and not Path(folder).is_dir():
            raise UsageError(f"{folder} is no folder", hint="name one for the trace")
        from torch.profiler import profile, schedule

        self.report: Profile | None = None
        self._folder = Path(folder)
        self._begin, self._first, self._end = wait, wait + warmup, wait + warmup + active
        self._done = 0
        self._profiler = profile(
            schedule=schedule(wait=wait, warmup=warmup, active=active, repeat=1),
            on_trace_ready=self._save,
        )
        self._sites = Sites()
        self._failed = False

    def __enter__(self) -> Self:
        self._profiler.start()
        self._watch()
        return self

    def step(self) -> None:
        """A step of the training is done."""
        self._done += 1
        if self._done <= self._end:
            self._profiler.step()
        self._watch()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._failed = kind is not None
        self._sites.close()
        self._profiler.stop()
        if self.report is None and not self._failed:
            warn(
                f"profile recorded nothing: step() was called {self._done} times, and the first "
                f"{self._first} steps are not recorded; say steps=(0, 0, {max(1, self._done)})"
            )

    def _watch(self) -> None:
        if self._begin <= self._done < self._end:
            self._sites.open()
        else:
            self._sites.close()

    def _save(self, profiler: torch.profiler.profile) -> None:
        if self._failed or self._done <= self._first:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{datetime.now():%Y%m%d-%H%M%S-%f}-rank{os.environ.get('RANK', 0)}.json"
        with atomic_write(self._folder / name) as temporary:
            profiler.export_chrome_trace(str(temporary))
        events, steps = profiler.events() or [], self._done - self._first
        self.report = _read(events, self._sites.known, self._folder / name, steps)


def _read(events: Sequence[Any], known: Mapping[str, Site], trace: Path, steps: int) -> Profile:
    on_cpu = [one for one in events if one.device_type.name == "CPU"]
    forward = {}  # the operation that made a node is the last with its number
    for event in sorted(on_cpu, key=lambda one: one.time_range.start):
        if event.sequence_nr >= 0 and not event.fwd_thread:
            forward[event.thread, event.sequence_nr] = event
    lines: dict[tuple[str, str], list[float]] = {}
    modules: dict[tuple[str, str], list[float]] = {}
    outside = 0.0
    for event in on_cpu:
        if event.name in known or event.scope == _USER_SCOPE:
            outside += event.self_cpu_time_total / 1e6
            continue
        site, is_backward = _origin(event, known, forward)
        is_call = event.cpu_parent is not None and event.cpu_parent.name in known
        cpu, device = event.self_cpu_time_total / 1e6, event.self_device_time_total / 1e6
        numbers = is_call and not is_backward, cpu, cpu * is_backward, device, device * is_backward
        for sums, name in ((lines, site[:2]), (modules, (site.module, ""))):
            before = sums.get(name, [0] * len(numbers))
            sums[name] = [old + new for old, new in zip(before, numbers, strict=True)]
    return Profile(trace, steps, _rows(lines), _rows(modules), outside)


def _origin(
    event: Any, known: Mapping[str, Site], forward: Mapping[tuple[int, int], Any]
) -> tuple[Site, bool]:
    """From where an operation was called, and whether it is of the backward of that."""
    is_backward = False
    while event is not None:
        if event.name in known:
            return known[event.name], is_backward
        made_by = forward.get((event.fwd_thread, event.sequence_nr)) if event.fwd_thread else None
        is_backward = is_backward or made_by is not None
        event = made_by or event.cpu_parent
    return Site("", "", ""), is_backward


def _rows(sums: Mapping[tuple[str, str], Sequence[float]]) -> tuple[Row, ...]:
    rows = [Row(*name, int(calls), *times) for name, (calls, *times) in sums.items()]
    return tuple(sorted(rows, key=lambda row: (-row.device_seconds, -row.cpu_seconds)))


def _table(title: str, rows: Sequence[Row], steps: int) -> str:
    has_device = any(row.device_seconds for row in rows)
    titles = [title, "calls", "CPU", "its backward", "device", "its backward", "share"]
    whole = sum(row.device_seconds if has_device else row.cpu_seconds for row in rows) or 1.0
    shown = [titles if has_device else [*titles[:4], "share"]]
    for row in rows[:_SHOWN]:
        times = [row.cpu_seconds, row.cpu_backward_seconds]
        if has_device:
            times += [row.device_seconds, row.device_backward_seconds]
        shown.append(
            [
                f"{row.name or '(none)'}  {row.source[:_TEXT]}".rstrip(),
                f"{row.calls / steps:.3g}",
                *(shown_seconds(time / steps) for time in times),
                f"{(row.device_seconds if has_device else row.cpu_seconds) / whole:.0%}",
            ]
        )
    return aligned(shown)
