"""Which tensors share memory, and which drag along memory that none of them sees."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ptools.checkpoint.pickles.tensors import ITEMSIZES, Tensor


@dataclass(frozen=True)
class Shared:
    """Names on one storage: "tied" if they are one tensor, parts that overlap or are "apart"."""

    kind: Literal["tied", "overlapping", "apart"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Slack:
    """A storage of which its tensors do not see `bytes` before the first and after the last."""

    names: tuple[str, ...]
    bytes: int


def _on_storages(named: Iterable[tuple[str, Tensor]]) -> Iterator[list[tuple[str, Tensor]]]:
    """The tensors that see anything, those of one storage together."""
    by_storage: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in named:
        if tensor.storage is not None and tensor.numel:
            by_storage[id(tensor.storage)].append((name, tensor))
    yield from by_storage.values()


def shared_in(named: Iterable[tuple[str, Tensor]]) -> tuple[Shared, ...]:
    """What shares memory, storage by storage."""
    found = []
    for tensors in _on_storages(named):
        views: dict[object, list[tuple[str, Tensor]]] = defaultdict(list)
        for name, tensor in tensors:
            key = (tensor.offset, tensor.shape, tensor.stride, tensor.dtype)
            views[key].append((name, tensor))
        found += [
            Shared("tied", tuple(name for name, _ in alike))
            for alike in views.values()
            if len(alike) > 1
        ]
        if len(views) > 1:
            firsts = [alike[0] for alike in views.values()]
            overlap = _overlap([_range(tensor) for _, tensor in firsts])
            names = tuple(name for name, _ in firsts)
            found.append(Shared("overlapping" if overlap else "apart", names))
    return tuple(found)


def _range(tensor: Tensor) -> tuple[int, int]:
    """The first byte of its storage that a tensor sees, and the one after the last."""
    size = ITEMSIZES[tensor.dtype]
    return tensor.offset * size, tensor.reach * size


def _overlap(ranges: Sequence[tuple[int, int]]) -> bool:
    ordered = sorted(ranges)
    return any(after[0] < before[1] for before, after in pairwise(ordered))


def slack_in(named: Iterable[tuple[str, Tensor]]) -> tuple[Slack, ...]:
    """What `--compact` would cut off."""
    found = []
    for tensors in _on_storages(named):
        storage = tensors[0][1].storage
        assert storage is not None
        starts, ends = zip(*(_range(tensor) for _, tensor in tensors), strict=True)
        if unseen := storage.nbytes - max(ends) + min(starts):
            found.append(Slack(tuple(name for name, _ in tensors), unseen))
    return tuple(found)
