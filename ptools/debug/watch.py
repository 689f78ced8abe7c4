"""Mode `watch`: is a loss or a gradient not finite? One fused check before each optimizer step."""

from __future__ import annotations

import math
from typing import Any

import torch

from ptools.debug.clock import roots_of
from ptools.debug.findings import Finding
from ptools.debug.mode import Mode
from ptools.debug.scaling import Scaling

SKIPPED_IN_A_ROW = 20  # a loss scale of 65536 is below 1 by then


class Watch(Mode):
    """Sees that something went wrong and at which step; another run then finds where."""

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self._losses: list[torch.Tensor] = []  # on an accelerator, not yet looked at
        self.scaling = Scaling()

    def running(self) -> Any:
        return self.scaling.noted()

    def before_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        for root in roots_of(roots):
            if root.device.type != "cpu":
                self._losses.append(root.detach())
            elif root.numel() == 1:
                self._check_loss(root.item())
            elif not _finite(root):
                self._check_loss(math.nan)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        losses, self._losses = self._losses, []
        for loss in losses:
            if not _finite(loss):
                self._check_loss(loss.item() if loss.numel() == 1 else math.nan)
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if gradients and not _all_finite(gradients) and not self.scaling.skips(optimizer):
            self._bad_gradient(optimizer)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaling.stepped()

    def after_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        if self.scaling.skipped == SKIPPED_IN_A_ROW:
            self._tell(f"the loss scaler skipped {SKIPPED_IN_A_ROW} steps in a row", "scaler")

    def _check_loss(self, value: Any) -> None:
        if math.isfinite(abs(value)) or (math.isinf(abs(value)) and self.scaling.used):
            return
        self._tell(f"the loss is {value}", "nonfinite-loss")

    def _bad_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        names = [
            self.modules.parameter_name(parameter) or f"a parameter {tuple(parameter.shape)}"
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and not _finite(parameter.grad)
        ]
        rest = f" and of {len(names) - 1} more" if len(names) > 1 else ""
        self._tell(f"the gradient of {names[0]}{rest} is not finite", "nonfinite-gradient")

    def _tell(self, summary: str, kind: str) -> None:
        place = self.here()
        self.found(Finding(kind, summary, places=(("seen", place),) if place else ()))


def _all_finite(gradients: list[torch.Tensor]) -> bool:
    """Whether all values are finite; one reading of the device for all tensors of it."""
    if any(gradient.is_sparse for gradient in gradients):
        return all(map(_finite, gradients))
    norms = torch._foreach_norm(gradients)
    if len({norm.device for norm in norms}) > 1 or len({norm.dtype for norm in norms}) > 1:
        sums = [norm.double().item() for norm in norms]
        total = sum(sums)
    else:
        total = torch.stack(norms).sum().item()
    # The squares of large values may overflow.
    return math.isfinite(total) or all(map(_finite, gradients))


def _finite(tensor: torch.Tensor) -> bool:
    values = tensor.detach()
    values = values.coalesce().values() if values.is_sparse else values
    return bool(torch.isfinite(values).all())
