"""By how much two values differ."""

from __future__ import annotations

from collections import defaultdict
from math import inf, isfinite, isnan

from ptools.repro.events import Event, Value


def error_of(mine: Value, other: Value, size: float = 0.0) -> float:
    """The relative error of floating-point numbers.

    0 for the same bits, infinite for what is not of the same kind, or not of such numbers. Of a
    tensor its root mean square and some of its numbers are compared.

    Args:
        size: of what the value is a part of: what is small beside it may be nothing but rounding.
    """
    if mine == other:
        return 0.0
    is_one_number = len(mine.numbers) == len(other.numbers) == 1
    if not is_one_number and mine.what != other.what:
        return inf
    if not mine.numbers or len(mine.numbers) != len(other.numbers):
        return inf
    size = max(size, _size(mine), _size(other))
    return max(_relative(a, b, size) for a, b in zip(mine.numbers, other.numbers, strict=True))


def errors_of(mine: Event, other: Event) -> list[float] | None:
    """The error of each value; None if the runs did not do the same thing there.

    An error is relative to all of its kind: to all gradients, or to all that an operation was given
    and came to.
    """
    names = [[one.name for one in event.values] for event in (mine, other)]
    if (mine.kind, mine.name) != (other.kind, other.name) or names[0] != names[1]:
        return None
    sizes: dict[str, float] = defaultdict(float)
    for event in (mine, other):
        for value in event.values:
            kind = _kind(event, value)
            sizes[kind] = max(sizes[kind], _size(value))
    pairs = zip(mine.values, other.values, strict=True)
    return [error_of(a, b, sizes[_kind(mine, a)]) for a, b in pairs]


def subject_of(event: Event, value: Value) -> str:
    """What a value is, for a sentence: `output of aten::mm`, `the loss`, `Net.fc.weight`."""
    return f"{value.name} of {event.name}" if event.kind == "op" else value.name


def _kind(event: Event, value: Value) -> str:
    if event.kind != "op":
        return value.name.rpartition(" of ")[0] if event.kind == "state" else value.name
    return "" if len(value.numbers) > 1 else value.name


def _size(value: Value) -> float:
    size = abs(value.numbers[0]) if value.numbers else 0.0
    return size if isfinite(size) else 0.0


def _relative(a: float, b: float, size: float) -> float:
    if a == b or (isnan(a) and isnan(b)):
        return 0.0
    apart = abs(a - b)
    return apart / max(abs(a), abs(b), size) if isfinite(apart) else inf
