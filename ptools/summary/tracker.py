"""Which storages are alive, of which kind, and who made them."""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ptools.dispatch import DispatchMode, name_of
from ptools.summary.attribution import Attribution, ModuleStack, tensors_in

_WITH_WORKSPACE = ("aten::mkldnn_rnn_layer", "aten::_cudnn_rnn")  # kept until the backward


@dataclass(slots=True)
class _Block:
    """One live storage."""

    size: int
    kind: str
    path: str


class Tracker(DispatchMode):
    """Counts the storages that are alive, by kind, and remembers the moment of the peak."""

    def __init__(self, modules: ModuleStack) -> None:
        super().__init__()
        self.attribution = Attribution(modules)
        self.blocks = WeakIdKeyDictionary()
        self.live: dict[str, int] = {}
        self.total = 0
        self.hidden: set[str] = set()
        self.phase = "forward"
        self.reset_peak()

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        self.peak, self.at_peak = self.total, dict(self.live)
        self.peak_phase, self.peak_path = self.phase, ""

    def add(self, tensor: torch.Tensor, kind: str, path: str = "") -> None:
        """Count the tensor's storage, or change the kind of one that is already counted."""
        storage = tensor.untyped_storage()
        block = self.blocks.get(storage)
        if block is None:
            block = self.blocks[storage] = _Block(storage.nbytes(), kind, path)
            weakref.finalize(storage, self._change, block, -1).atexit = False
            self._change(block, 1)
        elif block.kind != kind:
            self._change(block, -1)
            block.kind = kind
            self._change(block, 1)

    def kept(self, kind: str) -> dict[str, int]:
        """Bytes alive of a kind, by the module path that made them."""
        sums: dict[str, int] = {}
        for block in self.blocks.values():
            if block.kind == kind:
                sums[block.path] = sums.get(block.path, 0) + block.size
        return sums

    def _change(self, block: _Block, sign: int) -> None:
        self.live[block.kind] = self.live.get(block.kind, 0) + sign * block.size
        self.total += sign * block.size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        path, _, _ = self.attribution.current(sys._getframe(1))
        if name_of(func) in _WITH_WORKSPACE:
            self.hidden.add(name_of(func))
        kind = "activations" if self.phase == "forward" else "temporary"
        for tensor in tensors_in(out):
            if tensor.untyped_storage() not in self.blocks:
                self.add(tensor, kind, path)
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, dict(self.live)
            self.peak_phase, self.peak_path = self.phase, path
        return out
