"""The books of all devices: which storages are alive, where they come from, what they are for."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ptools.debug.memory.sites import Site
from ptools.debug.memory.storages import OTHER, TEMPORARIES, Block, Ledger, storages_of
from ptools.debug.memory.trace import Timeline
from ptools.program.clock import Clock


class Books:
    """All storages that were seen and are alive.

    What a storage is for shows in how long it lives: made in a forward and alive when the backward
    begins, it is an activation; made in the backward and alive after it, a gradient.
    """

    def __init__(self, clock: Clock, timeline: Timeline | None = None) -> None:
        self.blocks: dict[int, Block] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.operations = 0
        self.opaque = False  # whether a tensor was seen whose memory is no storage
        self._clock = clock
        self._timeline = timeline
        self._recent: dict[int, Block] = {}  # of which it may still turn out what they are for

    def storages(self, tensor: torch.Tensor) -> Iterable[torch.UntypedStorage]:
        """The storages of a tensor, as far as it has any."""
        try:
            return tuple(storages_of(tensor))
        except (NotImplementedError, RuntimeError):
            self.opaque = True
            return ()

    def add(self, storage: torch.UntypedStorage, site: Site, kind: str, born: str) -> Block:
        """Book a new storage."""
        block = self.blocks[id(storage)] = Block(storage, self._freed)
        block.key = id(storage)
        block.size, block.birth, block.born = storage.nbytes(), self.operations, born
        block.ledger = self._ledger(str(storage.device))
        block.holding = block.ledger.holding(site, kind)
        self._recent[block.key] = block
        self._change(block, 1, block.size)
        block.ledger.mark(self._clock.steps, site)
        return block

    def resize(self, block: Block, size: int, site: Site) -> None:
        """A storage has another size than before."""
        self._change(block, 0, size - block.size)
        block.size = size
        block.ledger.mark(self._clock.steps, site)

    def move(self, block: Block, kind: str) -> None:
        """A storage turns out to be of another kind."""
        if self._timeline is not None:
            device = block.ledger.device
            self._timeline.add(device, block.holding.kind, block.birth, -block.size)
            self._timeline.add(device, kind, block.birth, block.size)
        block.ledger.move(block, kind)

    def turned_out(self, born: str, kind: str) -> None:
        """What was born so, and is alive, is of this kind."""
        for block in [one for one in list(self._recent.values()) if one.born is born]:
            self._recent.pop(block.key, None)
            if block.holding.kind in (TEMPORARIES, OTHER):
                self.move(block, kind)

    def survived(self) -> None:
        """What is still alive is not temporary."""
        recent, self._recent = self._recent, {}
        for block in list(recent.values()):
            if block.holding.kind is TEMPORARIES:
                self.move(block, OTHER)

    def are(self, kind: str, tensors: Iterable[torch.Tensor]) -> None:
        """Tell what tensors are for."""
        for tensor in tensors:
            for storage in self.storages(tensor):
                block = self.blocks.get(id(storage))
                if block is not None and block.holding.kind is not kind:
                    self.move(block, kind)

    def release(self) -> None:
        """Watch the storages no longer."""
        self.blocks.clear()
        self._recent.clear()

    def _freed(self, block: Block) -> None:
        self.blocks.pop(block.key, None)
        self._recent.pop(block.key, None)
        self._change(block, -1, -block.size, after=1)

    def _change(self, block: Block, count: int, size: int, after: int = 0) -> None:
        block.ledger.change(block, count, size)
        if self._timeline is not None:
            operation = self.operations + after
            self._timeline.add(block.ledger.device, block.holding.kind, operation, size)

    def _ledger(self, device: str) -> Ledger:
        ledger = self.ledgers.get(device)
        if ledger is None:
            ledger = self.ledgers[device] = Ledger(device)
        return ledger
