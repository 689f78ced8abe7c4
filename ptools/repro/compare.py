"""Where two traces part."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from ptools.program.places import Place
from ptools.repro.events import BEATS, END, Event, Value
from ptools.repro.fingerprints.apart import errors_of
from ptools.repro.trace import Trace

if TYPE_CHECKING:
    from ptools.repro.fingerprints.tolerance import Errors


@dataclass(frozen=True)
class Parting:
    """The first event that is not the same in both runs.

    Args:
        a, b: what the runs did; None: the run was over.
        index: events before it.
        beats: of those, beats.
        synced: beats up to the last one at which the whole state was known to be equal.
        batch: what a DataLoader that was at work brought then, in both runs.
        places: the lines, of both.
        tolerance: relative error of floating-point numbers up to which they count as equal;
            None: their bits are compared.
    """

    a: Event | None
    b: Event | None
    index: int
    beats: int
    synced: int
    batch: tuple[Event | None, Event | None] = (None, None)
    places: tuple[Place | None, Place | None] = (None, None)
    tolerance: float | None = None

    @property
    def is_located(self) -> bool:
        """Whether it is one operation, and not only that something has differed since a beat."""
        known = [one for one in (self.a, self.b) if one is not None]
        return any(one.kind not in BEATS for one in known)

    @property
    def is_of_length(self) -> bool:
        """Whether one of the runs was over, and the other not."""
        over = [one is None or one.name == END for one in (self.a, self.b)]
        return any(over) and not all(over)

    def values(self) -> tuple[Value, Value] | None:
        """The first value that differs, if both did the same thing with the same kind of values."""
        if self.a is None or self.b is None or self.a.name != self.b.name:
            return None
        if [one.name for one in self.a.values] != [one.name for one in self.b.values]:
            return None
        pairs = zip(self.a.values, self.b.values, strict=True)
        if self.tolerance is None:
            return next(((mine, other) for mine, other in pairs if mine != other), None)
        errors = errors_of(self.a, self.b) or []
        found = zip(pairs, errors, strict=False)
        return next((pair for pair, error in found if error > self.tolerance), None)


@dataclass(frozen=True)
class Compared:
    """What a comparison of two traces came to; `errors` if a tolerance was given."""

    parting: Parting | None
    events: int
    beats: int
    facts: tuple[str, ...] = ()
    errors: Errors | None = None


def compare(first: Trace, second: Trace) -> Compared:
    """Read two traces up to where they part, and to their ends.

    A run that we ended early is compared as far as it went.
    """
    index = beats = synced = 0
    a = b = None
    mine, other = first.events(), second.events()
    for a, b in zip_longest(mine, other):
        if a is None or b is None or not a.agrees_with(b):
            break
        index += 1
        if a.kind in BEATS:
            beats += 1
            synced = beats if a.kind == "state" else synced
    else:
        return Compared(None, index, beats)
    fetching = a is not None and b is not None and a.fetching and b.fetching
    batch = (_next_batch(mine), _next_batch(other)) if fetching else (None, None)
    for rest in (mine, other):  # there stands how the runs ended
        deque(rest, maxlen=0)
    if (a is None and first.end.stopped) or (b is None and second.end.stopped):
        return Compared(None, index, beats)
    place_a = first.places.get(a.place) if a is not None else None
    place_b = second.places.get(b.place) if b is not None else None
    parting = Parting(a, b, index, beats, synced, batch, (place_a, place_b))
    return Compared(parting, index, beats)


def _next_batch(rest: Iterator[Event]) -> Event | None:
    return next((one for one in rest if one.kind == "batch"), None)
