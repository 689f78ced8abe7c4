"""Compare two traces within a tolerance, and tell how their errors grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import inf

from ptools.errors import UsageError
from ptools.program.places import Place
from ptools.repro.compare import Compared, Parting, compare
from ptools.repro.events import BEATS, Event, Value
from ptools.repro.fingerprints.apart import errors_of, subject_of
from ptools.repro.trace import Trace

_MOST = 2.0


def check_tolerance(tolerance: float | None) -> None:
    """Refuse what is no relative error.

    Raises:
        UsageError: it is zero, negative, or not a number.
    """
    if tolerance is not None and not 0 < tolerance < 1:
        raise UsageError(
            f"{tolerance:g} is no tolerance", hint="give a relative error between 0 and 1, as 1e-5"
        )


@dataclass(frozen=True)
class Row:
    """The largest errors of the steps after those of the row before, up to `step`.

    2 is the most, also for what cannot be compared. None: nothing of the kind was recorded there.
    """

    step: int
    loss: float | None
    gradients: float | None
    state: float | None  # parameters, buffers, and what optimizers keep


@dataclass(frozen=True)
class Worst:
    """The largest error that was seen, and where."""

    error: float
    name: str
    step: int
    place: Place | None


@dataclass(frozen=True)
class Errors:
    """How far two runs are from each other.

    Args:
        tolerance: what was allowed.
        worst: None: they are equal bit for bit.
        rows: at the steps that are powers of two, and the last.
        unlike: spans between two beats in which the runs had other operations, which were
            therefore not compared one by one.
    """

    tolerance: float
    worst: Worst | None
    rows: tuple[Row, ...]
    unlike: int


def compare_by(
    tolerance: float | None, first: Trace, second: Trace, alike: bool = True
) -> Compared:
    """Compare two traces bit for bit, or within a tolerance if there is one."""
    if tolerance is None:
        return compare(first, second)
    return compare_within(first, second, tolerance, alike)


def compare_within(first: Trace, second: Trace, tolerance: float, alike: bool = True) -> Compared:
    """Read two traces to their ends.

    Batches, losses, states and evaluated outputs are judged. Operations tell where a larger error
    came from: many come to nothing but rounding errors, as the gradient of a bias before a norm.

    Args:
        alike: the same program has to have the same operations in both; else only beats must be
            the same where operations are not.
    """
    spans = _Spans(first, second, alike)
    meter = _Meter()
    beats = synced = index = 0
    parting: Parting | None = None
    facts: tuple[str, ...] = ()
    suspect: Parting | None = None  # the first operation with larger errors since a good state
    for a, b in spans.pairs():
        here = Parting(a, b, index + spans.skipped, beats, synced, tolerance=tolerance)
        errors = None if a is None or b is None else errors_of(a, b)
        if a is None or errors is None:
            parting = parting or here
            break  # nothing more can be measured
        error = max(errors, default=0.0)
        if a.kind in BEATS:
            meter.read(a, errors)
            if error > tolerance and parting is None:
                parting = suspect or here
                facts = _exceeded(a, errors, tolerance, is_located=suspect is not None)
        elif error > tolerance:
            suspect = suspect or here
        if parting is None:
            index += 1
            beats += a.kind in BEATS
            if a.kind == "state":
                synced, suspect = beats, None
    spans.finish()
    parting = None if parting is None else _finished(parting, first, second)
    told = Errors(tolerance, meter.worst(first), meter.rows(), spans.unlike)
    return Compared(parting, index + spans.skipped, beats, facts if parting else (), told)


def _exceeded(
    beat: Event, errors: list[float], tolerance: float, is_located: bool
) -> tuple[str, ...]:
    """The first beat with a larger error, after the operation that it came from."""
    allowed = f"the tolerance is {tolerance:g}"
    if not is_located:
        return (allowed,)
    value, error = next(
        (value, error)
        for value, error in zip(beat.values, errors, strict=True)
        if error > tolerance
    )
    size = f"an error of {error:.1e} in" if error < inf else "another"
    return (f"then there is {size} {subject_of(beat, value)}, at step {beat.step:,}: {allowed}",)


def _finished(parting: Parting, first: Trace, second: Trace) -> Parting | None:
    """The parting with its lines; None where we ended a run, and nothing else."""
    a, b = parting.a, parting.b
    if (a is None and first.end.stopped) or (b is None and second.end.stopped):
        return None
    place_a = None if a is None else first.places.get(a.place)
    place_b = None if b is None else second.places.get(b.place)
    return replace(parting, places=(place_a, place_b))


class _Spans:
    """Two traces, from beat to beat.

    `unlike` counts the spans whose operations are not the same, `skipped` these operations.
    """

    def __init__(self, first: Trace, second: Trace, alike: bool) -> None:
        self.unlike = 0
        self.skipped = 0
        self._alike = alike
        self._events = first.events(), second.events()

    def pairs(self) -> Iterator[tuple[Event | None, Event | None]]:
        """What stands beside each other; None: a run was over."""
        first, second = map(_spans, self._events)
        nothing: list[Event] = []
        for mine, other in zip_longest(first, second, fillvalue=nothing):
            if not self._alike and _operations(mine) != _operations(other):
                self.unlike += 1
                self.skipped += len(_operations(mine))
                mine, other = _beats(mine), _beats(other)
            yield from zip_longest(mine, other)

    def finish(self) -> None:
        """Read on to the ends: there stands how the runs ended."""
        for events in self._events:
            deque(events, maxlen=0)


class _Meter:
    """Collects errors."""

    def __init__(self) -> None:
        self._worst: tuple[float, str, Event] | None = None
        self._steps: dict[int, dict[str, float]] = {}

    def read(self, event: Event, errors: list[float]) -> None:
        """The errors of an event's values."""
        for value, error in zip(event.values, errors, strict=True):
            if error < inf and error > (self._worst[0] if self._worst else 0.0):
                self._worst = error, subject_of(event, value), event
            if event.kind in ("loss", "state"):
                step = event.step + (event.kind == "loss")  # the one that it is computed in
                column = self._steps.setdefault(step, {})
                name = _column(event, value)
                column[name] = max(column.get(name, 0.0), min(error, _MOST))

    def worst(self, first: Trace) -> Worst | None:
        """The largest error."""
        if self._worst is None:
            return None
        error, name, event = self._worst
        return Worst(error, name, event.step, first.places.get(event.place))

    def rows(self) -> tuple[Row, ...]:
        """The errors at powers of two and at the last step."""
        rows: list[Row] = []
        so_far: dict[str, float] = {}
        last = max(self._steps, default=0)
        for step in sorted(self._steps):
            for name, error in self._steps[step].items():
                so_far[name] = max(so_far.get(name, 0.0), error)
            if step == last or step & (step - 1) == 0:
                rows.append(Row(step, *map(so_far.get, ("loss", "gradients", "state"))))
                so_far = {}
        return tuple(rows)


def _column(event: Event, value: Value) -> str:
    if event.kind == "loss":
        return "loss"
    return "gradients" if value.name.startswith("gradient") else "state"


def _spans(events: Iterator[Event]) -> Iterator[list[Event]]:
    """Operations up to a beat, and the beat."""
    span: list[Event] = []
    for event in events:
        span.append(event)
        if event.kind in BEATS:
            yield span
            span = []
    yield span


def _operations(span: list[Event]) -> list[str]:
    return [one.name for one in span if one.kind not in BEATS]


def _beats(span: list[Event]) -> list[Event]:
    return [one for one in span if one.kind in BEATS]
