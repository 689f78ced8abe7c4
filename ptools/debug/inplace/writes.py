"""Which line writes into a tensor that autograd has saved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import increment_version

from ptools.debug.inplace.saved import Entry, Ledger, Saved, is_plain
from ptools.debug.mode import tensors_in
from ptools.dispatch import DispatchMode, name_of
from ptools.program.modules import Modules
from ptools.program.spots import Spot, spot

Slot = tuple[int, str]  # position and name of an argument
Written = tuple[torch.Tensor, Entry]


@dataclass(frozen=True, slots=True)
class Write:
    """An operation that changed a tensor in place; `optimizer` is the type whose step did."""

    op: str
    spot: Spot
    moment: int
    optimizer: str = ""


class Writes(DispatchMode):
    """Records the writes to storages that are saved at present; all others cost a look-up."""

    def __init__(self, ledger: Ledger, modules: Modules) -> None:
        super().__init__()
        self._ledger = ledger
        self._modules = modules
        self._slots: dict[Any, tuple[Slot, ...]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if kwargs is None:
            kwargs = {}
        slots = self._slots.get(func)
        if slots is None:
            slots = self._slots[func] = _written(func)
        if slots and self._ledger.live:
            written = list(self._saved(slots, args, kwargs))
            if written:
                return self._write(written, func, args, kwargs)
        return func(*args, **kwargs)

    def _saved(self, slots: tuple[Slot, ...], args: Any, kwargs: Any) -> Iterator[Written]:
        """The tensors that an operation will write and of whose storage something is saved."""
        for position, name in slots:
            value = args[position] if position < len(args) else kwargs.get(name)
            for tensor in tensors_in(value):
                entry = self._ledger.entry(tensor)
                if entry is not None:
                    yield tensor, entry

    def _write(self, written: list[Written], func: Any, args: Any, kwargs: Any) -> Any:
        entries = {entry for _, entry in written}
        for entry in entries:
            for saved in _unchanged(entry):
                saved.before = saved.tensor.detach().clone()
        versions = [tensor._version for tensor, _ in written]
        out = func(*args, **kwargs)
        if name_of(func).startswith("aten::_foreach_"):
            # On a CPU these consist of operations that count, but not below a dispatch mode.
            increment_version(
                tensor
                for (tensor, _), version in zip(written, versions, strict=True)
                if tensor._version == version
            )
        self._ledger.moment += 1
        where = spot(self._modules, 3)
        write = Write(name_of(func), where, self._ledger.moment, self._ledger.optimizer)
        for entry in entries:
            entry.writes.append(write)
        return out


def _unchanged(entry: Entry) -> Iterator[Saved]:
    """The savings of a storage that nothing has written to yet."""
    for reference in entry.saved:
        saved = reference()
        if (
            saved is not None
            and saved.before is None
            and saved.tensor._version == saved.version
            and is_plain(saved.tensor)
        ):
            yield saved


def _written(func: Any) -> tuple[Slot, ...]:
    """The arguments that an operation writes to, by its schema."""
    schema = getattr(func, "_schema", None)  # a higher-order operator has none
    if schema is None:
        return ()
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
