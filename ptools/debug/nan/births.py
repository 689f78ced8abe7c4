"""Where each NaN and infinity that is alive was born."""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ptools.debug.findings import TensorStats
from ptools.program.spots import Spot

_numbers = itertools.count()


@dataclass(eq=False)
class Birth:
    """How numbers that are not finite came into the program.

    Args:
        kind: `nan` or `inf`.
        source: `operation`; `memory` that nothing was written to; `batch` of a DataLoader;
            `outside`: torch saw it first when an operation read it; `before` the tracing began.
        op: the operation that made it, or first read it.
        spot: the user's line: for a backward's operation the line of its forward.
        step: optimizer steps completed before.
        tick: backward calls begun before.
        node: the name of the backward's node, if a backward made it.
        forward: the line of the forward, if `spot` is a line that a backward called.
        backward: where that backward was called.
        optimizer: whether an optimizer made it.
        tensors: numbers of the result and of what was given.
        parents: where the infinities, or NaN kept from the forward, among the inputs were born.
        held_by: the parameter or buffer that held it before the tracing began.
        facts: sentences for the reader.
        read: whether an operation has computed with what came from outside.
        absorbed: whether an operation has taken it out again, as where and nan_to_num do.
    """

    kind: str
    source: str
    op: str
    spot: Spot
    step: int
    tick: int
    node: str = ""
    forward: Spot | None = None
    backward: Spot | None = None
    optimizer: bool = False
    tensors: tuple[TensorStats, ...] = ()
    parents: tuple[Birth, ...] = ()
    held_by: str = ""
    facts: list[str] = field(default_factory=list)
    read: bool = True
    absorbed: bool = False
    number: int = field(default_factory=lambda: next(_numbers))


class Taint(NamedTuple):
    """What a storage holds, and in which backward it came there; -1 in none."""

    birth: Birth
    task: int


class Taints:
    """The births by the memory that holds what was born; memory that is freed is forgotten."""

    def __init__(self) -> None:
        self._of: weakref.WeakKeyDictionary[torch.UntypedStorage, Taint] = (
            weakref.WeakKeyDictionary()
        )

    def __bool__(self) -> bool:
        return bool(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def of(self, tensor: torch.Tensor) -> Taint | None:
        """What is known of a tensor's memory."""
        return self._of.get(memory) if (memory := memory_of(tensor)) is not None else None

    def put(self, tensor: torch.Tensor, birth: Birth, task: int = -1) -> None:
        """The tensor's memory holds what was born there."""
        if (memory := memory_of(tensor)) is not None:
            self._of[memory] = Taint(birth, task)

    def clear(self, tensor: torch.Tensor) -> None:
        """The tensor, if it is all of its memory, holds other numbers now."""
        memory = memory_of(tensor)
        if memory is not None and tensor.numel() * tensor.element_size() == memory.nbytes():
            self._of.pop(memory, None)


def memory_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The memory of a tensor, of a sparse one that of its values; None if it has none."""
    try:
        values = tensor if tensor.layout is torch.strided else tensor.detach()
        if values.layout is torch.sparse_coo:
            values = values._values()
        elif values.layout is not torch.strided:
            values = values.values()
        return values.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return None
