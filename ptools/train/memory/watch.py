"""Which line made each storage, for as long as somebody watches."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ptools.dispatch import DispatchMode
from ptools.program.modules import Modules
from ptools.program.shown import line_of
from ptools.program.spots import Spot, spot
from ptools.train.memory.storages import dense_parts

_SPOTS: weakref.WeakKeyDictionary[torch.UntypedStorage, Spot] = weakref.WeakKeyDictionary()
_MODULES = Modules()


@contextmanager
def watch_memory() -> Iterator[None]:
    """A block in which the line is noted that makes each tensor, for `memory_report` to tell.

    It costs some microseconds for each operation, and is meant for a few steps.

    Example:
        >>> with watch_memory():
        ...     train_one_epoch()
        ...     print(memory_report())
    """
    with _Watch():
        yield


def line_that_made(storage: torch.UntypedStorage) -> str:
    """`train.py:12`; empty if nobody watched when it was made."""
    found = _SPOTS.get(storage)
    return "" if found is None else line_of(found.place(_MODULES))


def watched_storages() -> list[torch.UntypedStorage]:
    """Those that were made while somebody watched, and are alive: in a graph without Python too."""
    return list(_SPOTS)


class _Watch(DispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        here = None
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                for part in dense_parts(tensor):
                    storage = part.untyped_storage()
                    if storage not in _SPOTS:
                        here = here or spot(_MODULES)
                        _SPOTS[storage] = here
        return out
