"""One optimizer step out of several batches: autocast, scaling, no_sync, clipping."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ptools.errors import PtoolsError
from ptools.train.loader import Loader

_BATCH_NORM = "Expected more than 1 value per channel when training"


class Stepper:
    """Compute the loss within it, then call it with the loss.

    Args:
        model: whose gradients are clipped, and synchronised by DDP once for each step.
        optimizers: step together.
        loader: tells when an epoch ends, so that its last step takes the batches that are left.
        amp: autocast to it; float16 scales the loss.
        accum: batches for one step.
        clip: the largest norm of all gradients together.

    Example:
        >>> for x, y in loader:
        ...     with step:
        ...         loss = F.cross_entropy(net(x), y)
        ...     step(loss)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        loader: Loader | None,
        device: torch.device,
        amp: torch.dtype | None,
        accum: int,
        clip: float | None,
    ) -> None:
        self.steps = 0
        self.model = model
        self.optimizers = optimizers
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp is torch.float16)
        self._loader = loader
        self._autocast = (device.type, amp)
        self._accum = accum
        self._clip = clip
        self._waiting = 0  # batches whose gradients wait for a step
        self._group = accum  # batches of this step, as far as is known
        self._closes = True
        self._is_checked = False
        self._within = ExitStack()
        self._no_sync = ExitStack()

    def __enter__(self) -> Self:
        left = None if self._loader is None else self._loader.left()
        if self._waiting == 0:
            self._group = self._accum if left is None else min(self._accum, left)
        self._closes = self._waiting + 1 == self._group or left == 1
        if not self._closes and isinstance(self.model, DistributedDataParallel):
            self._no_sync.enter_context(self.model.no_sync())  # until the backward is through
        kind, dtype = self._autocast
        self._within.enter_context(torch.autocast(kind, dtype, enabled=dtype is not None))
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._within.close()
        if error is None:
            return
        self._no_sync.close()
        if _BATCH_NORM in str(error):
            raise PtoolsError(
                "BatchNorm cannot compute statistics of a single value per channel",
                hint="drop_last=True for the loader, a larger batch, or GroupNorm",
            ) from error

    def __call__(self, loss: torch.Tensor) -> bool:
        """Backward, and a step of the optimizers when the batches for it are complete.

        Args:
            loss: the mean over a batch; the batches of a step count alike.

        Returns:
            Whether it was a step.
        """
        with self._no_sync:
            self.scaler.scale(loss / self._group if self._group > 1 else loss).backward()
        self._waiting += 1
        if self._closes:
            self._step()
        return self._closes

    def waiting(self) -> dict[str, Any]:
        """The steps made, and what this process has of one that is not complete."""
        if not self._waiting:
            return {"steps": self.steps}
        gradients = [
            None if one.grad is None else one.grad.cpu() for one in self.model.parameters()
        ]
        return {
            "steps": self.steps,
            "batches": self._waiting,
            "group": self._group,
            "gradients": gradients,
        }

    def wait_again(self, state: dict[str, Any]) -> None:
        """Go on behind the steps of a checkpoint, or within one."""
        self.steps = state["steps"]
        if "batches" not in state:
            return
        self._waiting, self._group = state["batches"], state["group"]
        for one, gradient in zip(self.model.parameters(), state["gradients"], strict=True):
            one.grad = None if gradient is None else gradient.to(one.device)

    def _step(self) -> None:
        if not self._is_checked and isinstance(self.model, DistributedDataParallel):
            _check_used(self.model)
            self._is_checked = True
        if self._waiting < self._group:  # the epoch ended before, which could not be known
            gradients = [one.grad for one in self.model.parameters() if one.grad is not None]
            torch._foreach_mul_(gradients, self._group / self._waiting)
        if self._clip is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.steps, self._waiting = self.steps + 1, 0


def _check_used(model: DistributedDataParallel) -> None:
    """Name the parameters for which DDP would wait in vain at the next step."""
    unused = [
        name
        for name, one in model.module.named_parameters()
        if one.requires_grad and one.grad is None
    ]
    if unused and not model.find_unused_parameters:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise PtoolsError(
            f"the loss does not depend on {', '.join(unused[:3])}{more}, for which "
            "DistributedDataParallel waits",
            hint="use them in forward, freeze them by requires_grad_(False), or "
            "session.model(net, find_unused_parameters=True)",
        )
