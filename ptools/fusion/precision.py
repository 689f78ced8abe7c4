"""What 16 bits cost: the reference to compare with, and how far from it is near enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ptools.fusion.options import Cast, Option
from ptools.fusion.report import Difference
from ptools.fusion.trials import Trial
from ptools.fusion.verify import difference, worst
from ptools.replica import cloned, replica

# Largest differences as shares of the output's spread.
_TOLERANCES = {torch.bfloat16: 0.25, torch.float16: 0.03}
_FULL = 1e-4
_MORE_THAN_UNFUSED = 2.0  # both are noise, and each a maximum
_FINER = {
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float32: torch.float64,
}
_TOO_FAR = {torch.bfloat16: 1.0, torch.float16: 1.0, torch.float32: 0.01}


def dtype_of(model: nn.Module) -> torch.dtype:
    """That of the first floating-point weight."""
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating, torch.float32)


def tolerance_for(dtype: torch.dtype, unfused: Difference | None = None) -> float:
    """Largest difference that rounding explains, as a share of the output's spread.

    Args:
        dtype: of the weights.
        unfused: how far the model is from its reference without fusing, where that is known: a
            deep model, or one whose outputs hardly vary, is further off than others.
    """
    least = _TOLERANCES.get(dtype, _FULL)
    return least if unfused is None else max(least, _MORE_THAN_UNFUSED * unfused.relative)


def reference_of(model: nn.Module, tries: Sequence[Trial]) -> tuple[list[Any], Difference | None]:
    """What the model says in a finer dtype, and how far its own outputs are from that.

    Where its code insists on a dtype, or decides otherwise in a finer one: its own outputs, None.
    """
    own = [trial.run(model) for trial in tries]
    finer = _FINER.get(dtype_of(model))
    if finer is None:
        return own, None
    exact = replica(model, cloned).to(finer)
    try:
        outputs = [adapted(trial, Cast(finer)).run(exact) for trial in tries]
    except Exception:
        return own, None
    unfused = worst(difference(*pair) for pair in zip(outputs, own, strict=True))
    return (outputs, unfused) if unfused.relative < _TOO_FAR[dtype_of(model)] else (own, None)


def adapted(trial: Trial, *options: Option) -> Trial:
    """The trial with its tensors as the options want them."""
    args, kwargs = trial.args, trial.kwargs
    for option in options:
        args, kwargs = tree_map_only(torch.Tensor, option.place, (args, kwargs))
    return replace(trial, args=args, kwargs=kwargs)
