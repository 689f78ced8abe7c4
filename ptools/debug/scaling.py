"""What a GradScaler does: under it, an overflow in the backward is the plan, not a bug."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

HOPELESS = 1.0  # a loss scale of 65536 is below it after 20 steps that were skipped


class Scaling:
    """Whether losses are scaled, and how many steps in a row were skipped for an overflow."""

    def __init__(self) -> None:
        self.used = False
        self.skipped = 0
        self._stepped = False
        self._scalers: weakref.WeakSet[GradScaler] = weakref.WeakSet()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Listen to all GradScalers while the block runs."""
        scale, update = GradScaler.scale, GradScaler.update

        def noted_scale(scaler: GradScaler, *args: Any, **kwargs: Any) -> Any:
            if scaler.is_enabled():
                self.used = True
                self._scalers.add(scaler)
            return scale(scaler, *args, **kwargs)

        def noted_update(scaler: GradScaler, *args: Any, **kwargs: Any) -> None:
            if scaler.is_enabled():
                self.skipped = 0 if self._stepped else self.skipped + 1
                self._stepped = False
            update(scaler, *args, **kwargs)

        changed: Any = GradScaler
        changed.scale, changed.update = noted_scale, noted_update
        try:
            yield
        finally:
            changed.scale, changed.update = scale, update

    @property
    def hopeless(self) -> bool:
        """Whether a scale is so small that it is not the scale that makes gradients overflow."""
        return any(scaler.get_scale() < HOPELESS for scaler in self._scalers)

    def stepped(self) -> None:
        """An optimizer has changed its parameters."""
        self._stepped = True

    def skips(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a fused optimizer, which is called all the same, will leave its parameters."""
        found = getattr(optimizer, "found_inf", None)
        return found is not None and bool(found)
