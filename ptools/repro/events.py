"""What a run is compared by: plain data, which goes from process to process as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

REPLICAS = "replicas"  # the kind of an event that tells what ranks should hold alike
ADDED = " (added after DDP was made)"  # ends the name of a parameter there
OUTSIDE = " (outside DDP)"
BEATS = frozenset({"batch", "loss", "output", "state"})  # what the coarse pass records

END = "the end"  # the name of a program's last beat
PARAMETERS = "the parameters of "  # an optimizer: the name of the event in which it is made


class Value(NamedTuple):
    """One thing that has to be equal: a tensor, or a number that an operation was given.

    Args:
        name: `input self`, `output`, `[0]['label']`, `Net.fc.weight` ...
        what: shape and dtype of a tensor, else the number itself.
        digest: a CRC of the bytes.
        parts: of a batch's field, the digests of the samples.
        numbers: of floating-point numbers, their root mean square and some of them, if asked for.

    Two are equal if their bits are.
    """

    name: str
    what: str
    digest: int
    parts: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()

    def __eq__(self, other: object) -> bool:
        return self[:3] == other[:3] if isinstance(other, Value) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:3])


@dataclass(frozen=True)
class Event:
    """One thing that a run did, in the order in which it did them.

    Args:
        kind: one of BEATS, `op` for one operation, REPLICAS, or `enter`: torch took over foreign
            memory.
        name: the operation's, as `aten::mm`; of a beat what it is about.
        step: optimizer steps that were completed before.
        place: the number of the user's line, 0 for none.
        values: what is compared, in order.
        generator: for a random operation, a digest of the state that its generator was in.
        backward: whether a backward did it; the place is then the line of the forward.
        fetching: whether a DataLoader was at work in this process.
        unwritten: whether it read memory that nothing had been written to.
        samples: the numbers of a batch's samples, if they are known.
    """

    kind: str
    name: str
    step: int
    place: int
    values: tuple[Value, ...]
    generator: int | None = None
    backward: bool = False
    fetching: bool = False
    unwritten: bool = False
    samples: tuple[Any, ...] = ()

    def agrees_with(self, other: Event) -> bool:
        """Whether the other run did the same thing and came to the same bits."""
        mine = self.kind, self.name, self.values
        return mine == (other.kind, other.name, other.values)

    def row(self) -> list[Any]:
        """For a line of JSON; what is as by default at the end is left out."""
        fields = [*vars(self).values()]
        while fields[-1] in ((), None, False):
            fields.pop()
        return fields


def event_from(row: Sequence[Any]) -> Event:
    """An event from its JSON."""
    kind, name, step, place, values, *rest = row
    read = tuple(Value(*one[:3], *map(tuple, one[3:])) for one in values)
    if len(rest) == 5:
        rest[4] = tuple(rest[4])
    return Event(kind, name, step, place, read, *rest)


@dataclass(frozen=True)
class End:
    """How a run ended, and what it was.

    Args:
        ended: as Python programs do; else the rest may be old.
        stopped: we stopped it, when enough was known.
        watched: it imported torch.
        error: what it raised,
        place: and JSON of the line of the user's own at which.
        steps: optimizer steps.
        operations: that were compared one by one.
        nbytes: that were read for it, in bytes.
        notes: sentences for the reader.
        suspects: JSON of what it took in from outside torch.
        environment: what may make another run differ, by name: versions, threads, devices.
    """

    ended: bool = False
    stopped: bool = False
    watched: bool = False
    error: str = ""
    place: Mapping[str, Any] | None = None
    steps: int = 0
    operations: int = 0
    nbytes: int = 0
    notes: tuple[str, ...] = ()
    suspects: tuple[Mapping[str, Any], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
