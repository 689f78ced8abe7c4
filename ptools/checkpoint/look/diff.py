"""Compare two checkpoints of any formats: names, shapes, dtypes, values, and what lies around."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptools.checkpoint.look.comparing import Difference, difference
from ptools.checkpoint.look.entries import in_brackets, short
from ptools.checkpoint.look.sharing import shared_in
from ptools.checkpoint.look.sides import Keys, Side, read_side, renamed, weights_alone
from ptools.checkpoint.pickles.nodes import Node
from ptools.checkpoint.pickles.tensors import Tensor


@dataclass(frozen=True)
class TensorDiff:
    """One tensor that is not equal; `first` and `second` are (dtype, shape).

    `values` is None where shapes differ or where values are equal in another dtype.
    """

    name: str
    first: tuple[str, tuple[int, ...]]
    second: tuple[str, tuple[int, ...]]
    values: Difference | None


@dataclass(frozen=True)
class EntryDiff:
    """A value that is no tensor, on each side; "" where it is not there."""

    name: str
    first: str
    second: str


@dataclass(frozen=True)
class CheckpointDiff:
    """What `diff_checkpoints` finds.

    `containers` are the places of the weights if these alone were compared, because the two files
    have them in different ones; `rule` is how the first one's names were changed to fit. `equal`
    tells whether all that was compared is: names, shapes, dtypes, bits and entries. On which
    device a tensor is, and what it shares memory with, does not count.
    """

    first: Path
    second: Path
    containers: tuple[str, str] | None
    rule: str
    tensors: int
    different: tuple[TensorDiff, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    devices: dict[tuple[str, str], int]
    sharing: tuple[str, ...]
    entries: tuple[EntryDiff, ...]
    not_compared: tuple[str, ...]

    @property
    def equal(self) -> bool:
        return not (self.different or self.only_first or self.only_second or self.entries)

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON takes them."""
        moved = self.devices.items()
        return asdict(self) | {
            "first": str(self.first),
            "second": str(self.second),
            "equal": self.equal,
            "devices": [{"first": a, "second": b, "count": count} for (a, b), count in moved],
        }


def diff_checkpoints(
    first: str | Path,
    second: str | Path,
    advance: Callable[[float], None] = lambda amount: None,
) -> CheckpointDiff:
    """Compare two checkpoints; bytes are read where they lie, in little memory.

    Where the files have their weights in different places, the weights alone are compared. Names
    that differ by wrappers or a prefix are made to fit first. `advance` is told how many bytes are
    done, of the first.

    Raises:
        NotACheckpoint, CorruptCheckpoint, UsageError: as `open_checkpoint` does.

        diff_checkpoints("last.ckpt", "last.cpu.ckpt").equal
    """
    one, other = read_side(Path(first)), read_side(Path(second))
    containers = None
    if one.weights and other.weights and one.weights.keys != other.weights.keys:
        containers = one.weights.label, other.weights.label
        one, other = weights_alone(one), weights_alone(other)
    one, rule = renamed(one, other)
    both = [keys for keys in one.tensors if keys in other.tensors]
    different, skipped = [], []
    for keys in both:
        name = ".".join(keys)
        try:
            if found := _compared(name, one.tensors[keys], other.tensors[keys]):
                different.append(found)
        except ValueError as error:
            skipped.append(f"{name}: {error}")
        advance(one.tensors[keys].nbytes)
    return CheckpointDiff(
        one.path,
        other.path,
        containers,
        rule,
        len(both),
        tuple(different),
        tuple(".".join(keys) for keys in one.tensors if keys not in other.tensors),
        tuple(".".join(keys) for keys in other.tensors if keys not in one.tensors),
        _devices(one, other, both),
        _sharing(one, other),
        _entries(one, other),
        (*one.lost, *other.lost, *skipped),
    )


def _compared(name: str, first: Tensor, second: Tensor) -> TensorDiff | None:
    sides = _kind(first), _kind(second)
    if first.shape != second.shape or first.layout != second.layout:
        return TensorDiff(name, *sides, values=None)
    values = difference(first, second)
    return None if sides[0] == sides[1] and values is None else TensorDiff(name, *sides, values)


def _kind(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    layout = "" if tensor.layout == "strided" else f"{tensor.layout} "
    return f"{layout}{tensor.dtype}", tensor.shape


def _devices(first: Side, second: Side, both: Iterable[Keys]) -> dict[tuple[str, str], int]:
    """How many tensors are elsewhere in the second file."""
    pairs = ((first.tensors[keys].storage, second.tensors[keys].storage) for keys in both)
    places = ((a.location, b.location) for a, b in pairs if a and b)
    return dict(Counter((a, b) for a, b in places if a != b))


def _sharing(first: Side, second: Side) -> tuple[str, ...]:
    """What shares memory in one file only, of the names that both have."""
    ours, theirs = _groups(first, second), _groups(second, first)
    alone = [(first, ours - theirs), (second, theirs - ours)]
    return tuple(
        f"{', '.join(names[:3])} in {side.path} only"
        for side, found in alone
        for names in sorted(found)
    )


def _groups(side: Side, other: Side) -> set[Keys]:
    named = [(".".join(k), t) for k, t in side.tensors.items() if k in other.tensors]
    return {shared.names for shared in shared_in(named)}


def _entries(first: Side, second: Side) -> tuple[EntryDiff, ...]:
    return tuple(
        EntryDiff(".".join(keys), _text(first.values, keys), _text(second.values, keys))
        for keys in first.values | second.values
        if not (
            keys in first.values
            and keys in second.values
            and _alike(first.values[keys], second.values[keys])
        )
    )


def _alike(first: Node, second: Node) -> bool:
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(_alike, first, second))
    return bool(first == second or (first != first and second != second))  # NaN


def _text(values: Mapping[Keys, Node], keys: Keys) -> str:
    value = values.get(keys, "")
    if keys not in values:
        return ""
    return in_brackets(value, "()") if isinstance(value, tuple) else short(value)
