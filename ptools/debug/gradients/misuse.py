"""Optimizers that are called in a wrong order: never cleared, cleared too early, never fed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ptools.console import counted
from ptools.debug.findings import Finding, places_of
from ptools.debug.gradients.fates import ENOUGH, Fates
from ptools.debug.gradients.flow import Flow
from ptools.program.clock import held_by
from ptools.program.spots import Spot


@dataclass(eq=False)
class _Use:
    """How an optimizer was called; one of its parameters stands for all."""

    name: str
    watched: weakref.ref[torch.Tensor] | None = None  # the smallest that got a gradient
    stepped_at: Spot | None = None
    wiped_at: Spot | None = None
    steps: int = 0
    fed_steps: int = 0  # after at least one backward that gave it gradients, the first left out
    uncleared: int = 0  # of these, with the gradients of the step before still in
    wiped: int = 0  # of all steps, with gradients cleared after the backward
    blind: int = 0  # of all steps, with no gradient there
    early: bool = False  # the first step came before any backward
    # Since the last step:
    backwards: int = 0
    fed: bool = False
    cleared: bool = False
    left: tuple[weakref.ref[torch.Tensor], int] | None = None  # the gradient and its version

    def gradient(self) -> torch.Tensor | None:
        parameter = None if self.watched is None else self.watched()
        return None if parameter is None else parameter.grad

    def is_cleared(self) -> bool:
        """Whether the gradient of the last step is gone; when in doubt, it is."""
        now = self.gradient()
        if self.left is None or now is None or self.left[0]() is not now:
            return True
        touched = self.backwards == 0 and now._version != self.left[1]
        return touched or not _any(now)


class Misuse:
    """Watches how gradients come and go between the steps of each optimizer."""

    def __init__(self, flow: Flow, fates: Fates) -> None:
        self._flow = flow
        self._fates = fates
        self._uses: weakref.WeakKeyDictionary[torch.optim.Optimizer, _Use] = (
            weakref.WeakKeyDictionary()
        )
        self._all: list[_Use] = []
        self._backwards = 0

    def before_backward(self) -> None:
        """Were the gradients of the last step cleared?"""
        for use in self._uses.values():
            use.cleared = use.cleared or use.is_cleared()

    def after_backward(self) -> None:
        """Did gradients arrive?"""
        self._backwards += 1
        for optimizer in list(self._fates.optimizers):
            use = self._use(optimizer)
            use.backwards += 1
            if use.watched is None or use.watched() is None:
                parameter = _smallest_fed(optimizer)
                use.watched = None if parameter is None else weakref.ref(parameter)
            use.fed = use.fed or _any(use.gradient())

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """What does the step see?"""
        use = self._use(optimizer)
        use.stepped_at = use.stepped_at or self._fates.here()
        if use.fed and not _any(use.gradient()):
            use.wiped += 1
            use.wiped_at = use.wiped_at or self._flow.cleared
        elif use.fed and use.steps:
            use.fed_steps += 1
            use.uncleared += not use.cleared
        if use.watched is None:
            use.blind += all(one.grad is None for one in held_by(optimizer))

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember what has to be gone before the next backward."""
        use = self._use(optimizer)
        use.early = use.early or (use.steps == 0 and self._backwards == 0)
        use.steps += 1
        use.backwards, use.fed, use.cleared = 0, False, False
        gradient = use.gradient()
        use.left = None if gradient is None else (weakref.ref(gradient), gradient._version)

    def findings(self) -> Iterator[Finding]:
        """What is surely wrong."""
        for use in self._all:
            stepped = self._fates.place(use.stepped_at)
            if use.uncleared >= ENOUGH and use.uncleared == use.fed_steps:
                yield Finding(
                    kind="never-cleared",
                    summary=f"{use.name} adds the gradients of all earlier steps to each step's",
                    places=places_of(step=stepped),
                    facts=(f"not cleared before {counted(use.uncleared, 'backward')}",),
                    advice="call optimizer.zero_grad() before each backward",
                )
            if use.wiped >= ENOUGH and not use.fed_steps:
                yield Finding(
                    kind="cleared-too-early",
                    summary=f"{use.name} steps without gradients: they are cleared before it",
                    places=places_of(cleared=self._fates.place(use.wiped_at), step=stepped),
                    facts=(f"cleared after the backward, in {counted(use.wiped, 'step')}",),
                    advice="call zero_grad() before backward(), not between it and step()",
                )
            if use.steps and use.blind == use.steps and not self._backwards:
                yield Finding(
                    kind="no-backward",
                    summary=f"{use.name} made {counted(use.steps, 'step')}, but backward "
                    "was never called",
                    places=places_of(step=stepped),
                    advice="call loss.backward() before the step",
                )

    def notes(self) -> Iterator[str]:
        """What is unusual."""
        for use in self._all:
            if use.early and use.watched is not None:
                yield (
                    f"the first step of {use.name} came before any backward: is each step made "
                    "with the gradients of the batch before?"
                )

    def _use(self, optimizer: torch.optim.Optimizer) -> _Use:
        use = self._uses.get(optimizer)
        if use is None:
            use = self._uses[optimizer] = _Use(type(optimizer).__name__)
            self._all.append(use)
        return use


def _smallest_fed(optimizer: torch.optim.Optimizer) -> torch.Tensor | None:
    fed = (one for one in held_by(optimizer) if _any(one.grad))
    return min(fed, key=torch.Tensor.numel, default=None)


def _any(gradient: torch.Tensor | None) -> bool:
    if gradient is None:
        return False
    return gradient.is_sparse or bool(gradient.any())
