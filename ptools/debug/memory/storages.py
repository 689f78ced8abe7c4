"""The live storages of one device, by the line that made them and by what they are for."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ptools.debug.memory.sites import Site

PARAMETERS = "parameters"
BUFFERS = "buffers"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer state"
ACTIVATIONS = "activations"
INPUTS = "inputs"
TEMPORARIES = "temporaries"
OTHER = "other"
KINDS = (PARAMETERS, BUFFERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, INPUTS, TEMPORARIES, OTHER)

_MOST_CHANGES = 200_000  # between a peak and the moment when what was held at it is worked out


class Holding:
    """What is alive of one kind from one site."""

    __slots__ = ("bytes", "count", "kind", "site")

    def __init__(self, site: Site, kind: str) -> None:
        self.site = site
        self.kind = kind
        self.count = 0
        self.bytes = 0


class Block(weakref.ref[torch.UntypedStorage]):
    """One storage, which it does not keep alive.

    `birth` is the number of the operation that made it, `born` what that operation was a part of.
    """

    __slots__ = ("birth", "born", "holding", "key", "ledger", "size")

    key: int
    size: int
    birth: int
    born: str
    holding: Holding
    ledger: Ledger


@dataclass(frozen=True)
class Held:
    """What one site held of one kind at a moment."""

    site: Site
    kind: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Peak:
    """When most was alive: after so many steps, in an operation of a site; and what it was."""

    bytes: int
    step: int
    site: Site | None
    held: tuple[Held, ...] = ()


class Ledger:
    """The books of one device.

    What was held at the peak is not copied at each new peak but worked out later, by undoing what
    changed since: by then it is known what the storages were for.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.live = 0
        self.step_peak = 0  # since the last `end_step`
        self.peak = Peak(0, 0, None)
        self.holdings: dict[tuple[Site, str], Holding] = {}
        self._since: list[tuple[Block, int, int]] = []
        self._rising: tuple[int, int, Site | None] = 0, 0, None  # a peak, still to be worked out
        self._open = False

    def holding(self, site: Site, kind: str) -> Holding:
        """The entry of a site and kind."""
        found = self.holdings.get((site, kind))
        if found is None:
            found = self.holdings[site, kind] = Holding(site, kind)
        return found

    def change(self, block: Block, count: int, size: int) -> None:
        """Book a storage that is born (1), has died (-1), or has another size (0)."""
        holding = block.holding
        holding.count += count
        holding.bytes += size
        self.live += size
        if self._open:
            self._since.append((block, count, size))
            if len(self._since) > _MOST_CHANGES:
                self.settle()

    def move(self, block: Block, kind: str) -> None:
        """The storage turns out to be of another kind."""
        old = block.holding
        new = block.holding = self.holding(old.site, kind)
        old.count, new.count = old.count - 1, new.count + 1
        old.bytes, new.bytes = old.bytes - block.size, new.bytes + block.size

    def mark(self, step: int, site: Site) -> None:
        """Compare what is alive with the peaks so far."""
        if self.live > self.step_peak:
            self.step_peak = self.live
        if self.live > self._rising[0]:
            self._rising = self.live, step, site
            self._since.clear()
            self._open = True

    def settle(self) -> bool:
        """Work out what was held at the peak; whether there is a new one."""
        if not self._open:
            return False
        held = {
            key: [one.count, one.bytes]
            for key, one in self.holdings.items()
            if one.count or one.bytes
        }
        for block, count, size in self._since:
            entry = held.setdefault((block.holding.site, block.holding.kind), [0, 0])
            entry[0] -= count
            entry[1] -= size
        self.peak = Peak(
            *self._rising,
            held=tuple(Held(*key, count, size) for key, (count, size) in held.items() if size),
        )
        self._since.clear()
        self._open = False
        return True

    def end_step(self) -> int:
        """The peak of the step that ends; the next begins with what is alive."""
        peak, self.step_peak = self.step_peak, self.live
        return peak


def storages_of(tensor: torch.Tensor) -> Iterator[torch.UntypedStorage]:
    """The storages of any tensor: of a sparse one, or of one that wraps others, there are several.

    Raises:
        NotImplementedError: its memory is no storage, as that of an MKL-DNN tensor.
    """
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from storages_of(getattr(tensor, name))
    elif tensor.layout is torch.sparse_coo:
        yield from (part.untyped_storage() for part in (tensor._indices(), tensor._values()))
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = tensor.crow_indices(), tensor.col_indices(), tensor.values()
        yield from (part.untyped_storage() for part in parts)
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = tensor.ccol_indices(), tensor.row_indices(), tensor.values()
        yield from (part.untyped_storage() for part in parts)
    else:
        yield tensor.untyped_storage()
