"""Mode `watch`: is a loss, a gradient or a parameter not finite? Next to no work in most steps."""

from __future__ import annotations

import math
from typing import Any

import torch

from ptools.debug.findings import Finding, places_of
from ptools.debug.finite import PLAIN, all_finite, has_nan, is_finite
from ptools.debug.mode import Mode
from ptools.debug.scaling import Scaling
from ptools.program.clock import held_by, roots_of

SKIPPED_IN_A_ROW = 20  # a loss scale of 65536 is below 1 by then
LOSS = "nonfinite-loss"
_WAITING = 16
_EVERY = 8  # steps


class Watch(Mode):
    """Sees that something went wrong, and until when all was well; another run then finds where.

    Each loss is looked at, gradients and parameters in every eighth step and when the program is
    through: what a bad gradient has done to a parameter stays, and mostly shows in the next loss.
    """

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self._losses: list[torch.Tensor] = []  # on an accelerator, which is read now and then
        self.scaling = Scaling()

    def running(self) -> Any:
        return self.scaling.noted()

    def before_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        for root in roots_of(roots):
            if root.device.type == "cpu":
                self._check_loss(root)
            else:
                self._losses.append(root.detach())
        if len(self._losses) >= _WAITING:
            self._check_losses()

    def after_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        if self.scaling.skipped == SKIPPED_IN_A_ROW:
            self._tell(f"the loss scaler skipped {SKIPPED_IN_A_ROW} steps in a row", "scaler")

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.clock.steps % _EVERY:
            return
        self._check_losses()
        gradients = [one.grad for one in held_by(optimizer) if one.grad is not None]
        if gradients and not all_finite(gradients) and not self.scaling.skips(optimizer):
            held = held_by(optimizer)
            bad = [one for one in held if one.grad is not None and not is_finite(one.grad)]
            self._tell(
                f"the gradient of {self.modules.names_of(bad)} is not finite", "nonfinite-gradient"
            )
        self._check_parameters("")
        self.good_until = self.clock.ticks

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaling.stepped()

    def finish(self) -> None:
        self._check_losses()
        if not self.log.findings:
            self._check_parameters(" after the last step")
        if not self.clock.ticks:
            self.log.note("no backward was called: mode watch looks at losses; take --mode nan")
        elif not self.clock.optimizers:
            self.log.note(
                "no optimizer of torch was used: only the losses were watched, not the gradients"
            )

    def _check_losses(self) -> None:
        losses, self._losses = self._losses, []
        if losses and not all_finite(losses):
            for loss in losses:
                self._check_loss(loss)

    def _check_loss(self, loss: torch.Tensor) -> None:
        if loss.numel() == 1 and type(loss) in PLAIN:
            value = abs(loss.item())
        else:
            value = 0.0 if is_finite(loss) else math.nan if has_nan(loss) else math.inf
        if not math.isfinite(value) and not (math.isinf(value) and self.scaling.used):
            self._tell(f"the loss is {'NaN' if math.isnan(value) else 'infinite'}", LOSS)

    def _check_parameters(self, when: str) -> None:
        held = [one for owner in self.clock.optimizers for one in held_by(owner)]
        if held and not all_finite(held):
            bad = [one for one in held if not is_finite(one)]
            self._tell(f"{self.modules.names_of(bad)} is not finite{when}", "nonfinite-parameter")

    def _tell(self, summary: str, kind: str) -> None:
        self.found(Finding(kind, summary, places=places_of(seen=self.here())))
