"""Mode `nan`: the operation that made the first NaN, and where the infinity behind it was born.

NaN that never comes to a loss, a gradient or a parameter is legitimate, as a mark of what is
missing and in a branch that a mask takes out; so is infinity. Births are remembered, and become
findings at the next beat of the training that is not finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from ptools.debug.calls import leaves_of
from ptools.debug.findings import Finding, places_of
from ptools.debug.finite import all_finite, has_nan, is_finite
from ptools.debug.mode import Mode
from ptools.debug.nan.advice import BEGIN_EARLIER
from ptools.debug.nan.batches import batches_checked
from ptools.debug.nan.births import Birth, Taints
from ptools.debug.nan.stats import stats_of
from ptools.debug.nan.story import finding_of, told_in_passing
from ptools.debug.nan.tracer import Tracer
from ptools.debug.scaling import Scaling
from ptools.dispatch import Unseen
from ptools.program.clock import held_by, roots_of

_TOLD = 3


class Nan(Mode):
    """Checks what each operation returns, from the tick `start` or the step `at_step` on.

    `late` says that there were parameters before the mode.
    """

    def __init__(
        self, *rest: Any, start: int = 0, at_step: int | None = None, late: bool = False
    ) -> None:
        super().__init__(*rest)
        self.scaling = Scaling()
        self._start = start
        self._at_step = at_step
        self._late = late or bool(start or at_step)
        self._tracer = Tracer(self.clock, self.modules)
        self._origins = self._tracer.origins
        self._told: set[Birth] = set()
        self._leaves: dict[torch.Tensor, None] = {}  # whose gradients nobody has used yet

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self.scaling.noted())
            stack.enter_context(batches_checked(self._origins))
            if (self._start if self._at_step is None else self._at_step) == 0:
                self._tracer.__enter__()
            stack.callback(self._disarm)
            yield

    def before_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        if not self._tracer.on:
            return
        with Unseen():
            for root in roots_of(roots):
                if not is_finite(root) and (has_nan(root) or not self.scaling.used):
                    self._tell([root], "it reached the loss", "the loss is not finite")

    def after_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        if not self._tracer.on and self._at_step is None and self.clock.ticks >= self._start:
            self._arm()
        elif self._tracer.on and self.scaling.hopeless:
            self._check_gradients(self._parameters())
        if not self.clock.optimizers and (self._origins.nans or self._origins.infs):
            self._leaves |= dict.fromkeys(leaves_of(list(roots)))

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._tracer.on and not self.scaling.skips(optimizer):
            self._check_gradients(held_by(optimizer))

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaling.stepped()
        if self._tracer.on:
            self._check_parameters(held_by(optimizer))
        elif self._at_step is not None and self.clock.steps >= self._at_step:
            self._arm()

    def finish(self) -> None:
        births = self._origins.births
        if not self.log.findings:
            self._judge([one for one in births if one.read and not one.absorbed])
        if self.log.findings:
            return
        made = [one for one in births if one.source == "operation" and one not in self._told]
        for birth in [one for one in made if not (one.node and self.scaling.used)][:_TOLD]:
            self.log.note(told_in_passing(birth, self.modules))

    def _judge(self, left: list[Birth]) -> None:
        """What came to nothing that is looked at, but was the program's last."""
        last = [one for one in left if one.tick == self.clock.ticks and not one.node]
        if left and not self.clock.ticks:
            self._found(left[0], "no backward was called, and nothing took it out again")
        elif last and self.failed:
            self._found(last[0], "the program failed before it came to a loss")
        elif not (self.clock.optimizers or self.scaling.used):
            self._check_gradients(self._leaves)

    def _arm(self) -> None:
        with Unseen():
            bad = [one for one in self._parameters() if not is_finite(one)]
            bad += [one for root in self.modules.roots() for one in root.buffers() if has_nan(one)]
        names = [self.modules.names_of([one]) for one in bad]
        if names:
            which = f"{names[0]} and {len(names) - 1} more were" if names[1:] else f"{names[0]} was"
            summary = f"{which} not finite before the tracing"
            self.found(Finding("nan-before", summary, advice=BEGIN_EARLIER))
        self._tracer.__enter__()

    def _disarm(self) -> None:
        if self._tracer.on:
            self._tracer.__exit__(None, None, None)

    def _check_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        held = {one: one.grad for one in parameters if one.grad is not None}
        with Unseen():
            if not held or all_finite(list(held.values())):
                return
            bad = [one for one, gradient in held.items() if not is_finite(gradient)]
            where = f"the gradient of {self.modules.names_of(bad)}"
            gradients = [held[one] for one in bad]
            self._tell(gradients, f"it reached {where}", f"{where} is not finite")

    def _check_parameters(self, parameters: Iterable[torch.Tensor]) -> None:
        if not (self._origins.nans or self._origins.infs):
            return
        known = [one for one in parameters if self._birth_of([one])]
        with Unseen():
            bad = [one for one in known if not is_finite(one)]
            if not bad:
                return
            where = self.modules.names_of(bad)
            birth = self._birth_of(bad)
            if birth is not None and birth.optimizer:
                steepest = max(bad, key=_slope)
                if steepest.grad is not None:
                    name = f"gradient of {self.modules.names_of([steepest])}"
                    birth.tensors += (stats_of(name, steepest.grad),)
            self._tell(bad, f"it reached {where}", f"{where} is not finite")

    def _tell(self, tensors: list[torch.Tensor], reached: str, seen: str) -> None:
        birth = self._birth_of(tensors)
        if birth is not None:
            self._found(birth, reached)
        else:
            self.found(self._unborn(seen))

    def _birth_of(self, tensors: list[torch.Tensor]) -> Birth | None:
        """Where the first NaN of the tensors was born, or the first infinity if they hold none."""
        for taints in self._origins.nans, self._origins.infs:
            births = list(_births(taints, tensors))
            if births:
                return min(births, key=lambda birth: birth.number)
        return None

    def _found(self, birth: Birth, reached: str) -> None:
        self._told.add(birth)
        finding = finding_of(birth, self.modules, reached, self._late)
        self.log.add(replace(finding, step=birth.step, tick=birth.tick))

    def _unborn(self, seen: str) -> Finding:
        place = self.here()
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        fact = "it came from another process" if several else "no traced operation made it"
        return Finding("nan", seen, places_of(seen=place), facts=(fact,))

    def _parameters(self) -> list[torch.Tensor]:
        owners: list[Any] = self.modules.roots()
        of_modules = [one for owner in owners for one in owner.parameters()]
        of_optimizers = [one for owner in self.clock.optimizers for one in held_by(owner)]
        return list(dict.fromkeys((*of_modules, *of_optimizers)))


def _births(taints: Taints, tensors: list[torch.Tensor]) -> Iterator[Birth]:
    for tensor in tensors:
        if (taint := taints.of(tensor)) is not None:
            yield taint.birth


def _slope(parameter: torch.Tensor) -> float:
    return 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
