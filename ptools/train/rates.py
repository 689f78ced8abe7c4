"""Learning rates for large batches (Goyal et al., https://arxiv.org/abs/1706.02677)."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ptools.errors import UsageError


def scale_lr(base_lr: float, batch: int, base_batch: int, rule: str = "linear") -> float:
    """The learning rate for a batch, from one that was right for another.

    Args:
        batch: samples for one step of the optimizer, of all processes together.
        base_batch: those for which `base_lr` was chosen.
        rule: "linear" for SGD (section 2.1), "sqrt" for Adam and its kin.

    Raises:
        UsageError: there is no such rule, or no samples.

    Example:
        >>> scale_lr(0.1, batch=1024, base_batch=256)
        0.4
    """
    if batch < 1 or base_batch < 1:
        raise UsageError(f"batches of {batch} and {base_batch} samples", hint="1 or more")
    factor = batch / base_batch
    if rule == "linear":
        return base_lr * factor
    if rule == "sqrt":
        return base_lr * math.sqrt(factor)
    raise UsageError(f"there is no rule {rule!r}", hint="linear or sqrt")


def warmup(optimizer: Optimizer, steps: int, start: float = 0.0) -> LambdaLR:
    """A scheduler which raises learning rates in equal parts, and leaves them then (section 2.2).

    Call its `step` after each step of the optimizer. Chain it before another by
    torch.optim.lr_scheduler.SequentialLR.

    Args:
        steps: until the optimizer's own learning rate is reached.
        start: the part of it to begin with: Goyal et al. begin with base_batch / batch.
    """
    return LambdaLR(optimizer, partial(_part, steps=steps, start=start))


def _part(done: int, steps: int, start: float) -> float:
    return 1.0 if done >= steps else start + (1 - start) * done / steps
