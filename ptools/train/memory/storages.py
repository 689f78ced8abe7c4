"""The memory that is alive: each storage once, with all that is known to lie in it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_ROWS = (torch.sparse_csr, torch.sparse_bsr)
_COLUMNS = (torch.sparse_csc, torch.sparse_bsc)


class Named:
    """A tensor with the name by which the program knows it; empty for none."""

    __slots__ = ("kind", "name", "tensor")

    def __init__(self, kind: str, name: str, tensor: torch.Tensor) -> None:
        self.kind = kind
        self.name = name
        self.tensor = tensor


@dataclass
class Storages:
    """Storages by their address, each with its tensors; those that were added first name it."""

    storages: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    tensors: dict[int, list[Named]] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)

    def add(self, kind: str, name: str, tensor: torch.Tensor) -> None:
        """A tensor, which has one name alone."""
        if id(tensor) in self._seen or tensor.is_meta:
            return
        self._seen.add(id(tensor))
        for part in dense_parts(tensor):
            storage = part.untyped_storage()
            if storage.nbytes() and storage.device.type != "meta":
                # The wrapped parts are Python's too, and known from now on.
                self._seen.add(id(part))
                self.storages[storage._cdata] = storage
                self.tensors.setdefault(storage._cdata, []).append(Named(kind, name, part))


def dense_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors with memory of their own that a sparse one, or one that wraps others, is of."""
    if is_lazy(tensor):
        return
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from dense_parts(getattr(tensor, name))
    elif tensor.layout is torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout in _ROWS:
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in _COLUMNS:
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    elif tensor.layout is torch.strided and torch._C._has_storage(tensor):
        yield tensor


def all_of(kind: type) -> list[Any]:
    """All objects of a type that Python's garbage collector knows."""
    # Not isinstance: some classes import half a library when they are asked for their __class__.
    return [one for one in gc.get_objects() if issubclass(type(one), kind)]
