"""Where two traces part."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from ptools.program.places import Place
from ptools.repro.events import BEATS, Event, Value
from ptools.repro.trace import Trace


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
    """

    a: Event | None
    b: Event | None
    index: int
    beats: int
    synced: int
    batch: tuple[Event | None, Event | None] = (None, None)
    places: tuple[Place | None, Place | None] = (None, None)

    @property
    def is_located(self) -> bool:
        """Whether it is one operation, and not only that something has differed since a beat."""
        known = [one for one in (self.a, self.b) if one is not None]
        return any(one.kind not in BEATS for one in known)

    def values(self) -> tuple[Value, Value] | None:
        """The first value that differs, if both did the same thing with the same kind of values."""
        if self.a is None or self.b is None or self.a.name != self.b.name:
            return None
        if [one.name for one in self.a.values] != [one.name for one in self.b.values]:
            return None
        pairs = zip(self.a.values, self.b.values, strict=True)
        return next(((mine, other) for mine, other in pairs if mine != other), None)


@dataclass(frozen=True)
class Compared:
    """What a comparison of two traces came to."""

    parting: Parting | None
    events: int
    beats: int


def compare(first: Trace, second: Trace) -> Compared:
    """Read two traces up to where they part, and to their ends."""
    parting: Parting | None = None
    index = beats = synced = 0
    mine, other = first.events(), second.events()
    for index, (a, b) in enumerate(zip_longest(mine, other)):
        if (a is None and first.end.stopped) or (b is None and second.end.stopped):
            return Compared(None, index, beats)
        if a is None or b is None or not a.agrees_with(b):
            parting = Parting(a, b, index, beats, synced)
            break
        if a.kind in BEATS:
            beats += 1
            synced = beats if a.kind == "state" else synced
    else:
        return Compared(None, index + 1 if beats or index else 0, beats)
    fetching = a is not None and b is not None and a.fetching and b.fetching
    batch = (_next_batch(mine), _next_batch(other)) if fetching else (None, None)
    for rest in (mine, other):  # to their ends: there stands how the runs ended
        deque(rest, maxlen=0)
    places = tuple(
        trace.places.get(one.place) if one else None for trace, one in ((first, a), (second, b))
    )
    assert len(places) == 2
    parting = Parting(a, b, index, beats, synced, batch, places)
    return Compared(parting, index, beats)


def _next_batch(rest: Iterator[Event]) -> Event | None:
    return next((one for one in rest if one.kind == "batch"), None)
