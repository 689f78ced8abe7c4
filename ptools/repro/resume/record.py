"""A recorded run as a list, and where a resumed run stands in an uninterrupted one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

from ptools.program.places import Place
from ptools.repro.events import BEATS, Event, Value
from ptools.repro.resume import state
from ptools.repro.trace import Trace

ATTACHED = (state.MODEL, state.COPY)  # a run may have more of them, which tells nothing


class Record:
    """The beats and points of a run."""

    def __init__(self, trace: Trace) -> None:
        self.events = [one for one in trace.events() if one.kind in BEATS or is_point(one)]
        self.end = trace.end
        self._places = trace.places

    @property
    def error(self) -> str:
        """What ended it, if it was not we."""
        return "" if self.end.stopped else self.end.error

    @cached_property
    def points(self) -> list[int]:
        """The numbers of the events that are points before a forward."""
        return [at for at, one in enumerate(self.events) if is_point(one) and one.name != state.END]

    def place(self, event: Event) -> Place | None:
        """The user's line."""
        return self._places.get(event.place)

    def batch_before(self, at: int) -> Event | None:
        """The batch that came last before a point, if it is for it."""
        before = self.events[at - 1] if at else None
        return before if before is not None and before.kind == "batch" else None


def is_point(event: Event) -> bool:
    """Whether an event is the whole state."""
    return event.kind == state.POINT


def values_of(point: Event, categories: Collection[str]) -> dict[str, Value]:
    """The values of some categories by name."""
    return {one.name: one for one in point.values if state.category_of(one) in categories}


@dataclass(frozen=True)
class Difference:
    """A value that is not the same in run A and the resumed one; None: it is not there."""

    name: str
    mine: Value | None
    its: Value | None

    def told(self) -> str:
        """`last_epoch of StepLR is 6 in run A and 0 in the resumed run`."""
        if self.its is None:
            return f"{self.name} is missing in the resumed run"
        if self.mine is None:
            return f"{self.name} is only in the resumed run"
        if self.mine.what == self.its.what:
            return f"{self.name} differs"
        return f"{self.name} is {self.mine.what} in run A and {self.its.what} in the resumed run"


def differences(mine: Event, its: Event, category: str) -> list[Difference]:
    """In what two points differ."""
    ours, others = values_of(mine, (category,)), values_of(its, (category,))
    names = [*ours, *(name for name in others if name not in ours)]
    if category == state.MODEL:
        names = [*ours]
    if category in (state.COPY, state.COUNTER):
        names = [name for name in ours if name in others]
    return [
        Difference(name.partition(": ")[2], ours.get(name), others.get(name))
        for name in names
        if ours.get(name) != others.get(name)
    ]


def start_in(run: Record, first: Event, last: int) -> int:
    """The number of the event in run A at which the resumed run goes on, or nearly so.

    Of the points up to step `last`, that with most of the parameters, then of the rest.
    """
    rest = (*state.KEPT, state.INPUT)

    def alike(at: int) -> tuple[int, int, int]:
        event = run.events[at]
        return _equal(event, first, (state.PARAMETER,)), _equal(event, first, rest), at

    return max((at for at in run.points if run.events[at].step <= last), key=alike)


def _equal(mine: Event, its: Event, categories: Collection[str]) -> int:
    others = values_of(its, categories)
    return sum(others.get(name) == one for name, one in values_of(mine, categories).items())


def part(
    mine: list[Event], its: list[Event], stopped: tuple[bool, bool], ignored: Collection[str]
) -> tuple[int, tuple[Event | None, Event | None] | None]:
    """How many events agree, and the first two that do not.

    Args:
        stopped: whether we ended run A, and the other.
        ignored: categories of values that need not be equal.
    """
    count = 0
    for count, (one, other) in enumerate(zip_longest(mine, its)):
        if (one is None and stopped[0]) or (other is None and stopped[1]):
            return count, None
        if one is None or other is None or not _agree(one, other, ignored):
            return count, (one, other)
    return count + 1 if mine else 0, None


def _agree(one: Event, other: Event, ignored: Collection[str]) -> bool:
    if not (is_point(one) and is_point(other)):
        return one.agrees_with(other)
    if one.name != other.name:
        return False
    return not any(
        differences(one, other, category)
        for category in (*state.KEPT, state.INPUT)
        if category not in ignored
    )
