"""The beats of a training: backward calls and optimizer steps, told to a mode."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

if TYPE_CHECKING:
    from ptools.debug.mode import Mode


class Clock:
    """How far a training has come.

    `ticks` counts backward calls that were begun, which is the same in each run of a program;
    `steps` counts the completed steps of the optimizer that has made most, which is what a person
    calls the step.
    """

    def __init__(self) -> None:
        self.ticks = 0
        self.steps = 0
        self.optimizers: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = (
            weakref.WeakKeyDictionary()
        )

    @contextmanager
    def telling(self, mode: Mode) -> Iterator[None]:
        """Count, and call the mode at each beat, while the block runs."""
        backward = torch.autograd.backward

        @functools.wraps(backward)
        def counted(tensors: Any, *args: Any, **kwargs: Any) -> None:
            roots = (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)
            mode.before_backward(roots)
            self.ticks += 1
            backward(tensors, *args, **kwargs)
            mode.after_backward(roots)

        torch.autograd.backward = counted
        hooks = (
            register_optimizer_step_pre_hook(lambda optimizer, *_: mode.before_step(optimizer)),
            register_optimizer_step_post_hook(lambda optimizer, *_: self._stepped(mode, optimizer)),
        )
        try:
            yield
        finally:
            torch.autograd.backward = backward
            for hook in hooks:
                hook.remove()

    def _stepped(self, mode: Mode, optimizer: torch.optim.Optimizer) -> None:
        count = self.optimizers[optimizer] = self.optimizers.get(optimizer, 0) + 1
        self.steps = max(self.steps, count)
        mode.after_step(optimizer)


def roots_of(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Those of the tensors that hold real or complex numbers."""
    return [one for one in tensors if one.is_floating_point() or one.is_complex()]


def held_by(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The parameters of an optimizer."""
    return [one for group in optimizer.param_groups for one in group["params"]]
