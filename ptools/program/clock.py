"""The beats of a training: backward calls and optimizer steps, and who is told of them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class Beats(Protocol):
    """What is told the beats of a training."""

    def before_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        """A backward from these tensors is about to begin; it is not yet counted."""

    def after_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        """It is through."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to change its parameters."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """It has."""


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
    def telling(self, told: Beats) -> Iterator[None]:
        """Count, and tell of each beat, while the block runs."""
        backward = torch.autograd.backward

        @functools.wraps(backward)
        def counted(tensors: Any, *args: Any, **kwargs: Any) -> None:
            roots = (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)
            told.before_backward(roots)
            self.ticks += 1
            backward(tensors, *args, **kwargs)
            told.after_backward(roots)

        torch.autograd.backward = counted
        hooks = (
            register_optimizer_step_pre_hook(lambda optimizer, *_: told.before_step(optimizer)),
            register_optimizer_step_post_hook(lambda optimizer, *_: self._stepped(told, optimizer)),
        )
        try:
            yield
        finally:
            torch.autograd.backward = backward
            for hook in hooks:
                hook.remove()

    def _stepped(self, told: Beats, optimizer: torch.optim.Optimizer) -> None:
        count = self.optimizers[optimizer] = self.optimizers.get(optimizer, 0) + 1
        self.steps = max(self.steps, count)
        told.after_step(optimizer)


def roots_of(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Those of the tensors that hold real or complex numbers."""
    return [one for one in tensors if one.is_floating_point() or one.is_complex()]


def held_by(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The parameters of an optimizer."""
    return [one for group in optimizer.param_groups for one in group["params"]]
