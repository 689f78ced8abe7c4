"""Operations that exchange tensors with other processes, and go on after they have returned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

_SPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd")
# Their tensors are not read, or not yet there.
_READ_NONE = {"recv_", "recv_any_source_", "barrier", "irecv", "batch_p2p_ops", "wait_tensor"}
_WRITE_NONE = {"send", "isend", "barrier", "monitored_barrier_"}


def is_collective(name: str) -> bool:
    """Whether an operation exchanges tensors with other processes."""
    return name.partition("::")[0] in _SPACES


def merely_written(name: str, arguments: Iterable[str]) -> set[str]:
    """Of a collective's arguments those that it does not read, which no schema says."""
    if name.partition("::")[2] in _READ_NONE:
        return set(arguments)
    return {one for one in arguments if one.startswith("out")}


def brought(name: str, arguments: Iterable[tuple[str, Any]], out: Any) -> Iterator[torch.Tensor]:
    """The tensors that a collective fills, at once or later."""
    space, _, base = name.partition("::")
    if base in _WRITE_NONE:
        return
    yield from _tensors(out)
    if space == "c10d":
        for argument, value in arguments:
            if not argument.startswith("input"):
                yield from _tensors(value)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for one in tree:
            yield from _tensors(one)
