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
from ptools.replica import cloned, replica

# Largest differences as shares of the output's spread.
_TOLERANCES = {torch.bfloat16: 0.25, torch.float16: 0.03}
_FULL = 1e-4
_MORE_THAN_UNFUSED = 2.0  # both are noise, and each a maximum


def dtype_of(model: nn.Module) -> torch.dtype:
    """That of the first floating-point weight."""
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating, torch.float32)


def tolerance_for(dtype: torch.dtype, unfused: Difference | None = None) -> float:
    """Largest difference that rounding explains, as a share of the output's spread.

    Args:
        dtype: of the weights.
        unfused: how far the model is from its reference without fusing, where that is known: a
            deep model of 16 bits may be further off than others.
    """
    least = _TOLERANCES.get(dtype, _FULL)
    return least if unfused is None else max(least, _MORE_THAN_UNFUSED * unfused.relative)


def reference_of(model: nn.Module, tries: Sequence[Trial]) -> tuple[nn.Module, list[Any]]:
    """The model in float32 with its outputs; itself where it has no fewer bits.

    Also itself where its code insists on a dtype, so that the copy does not run.
    """
    if dtype_of(model) in _TOLERANCES:
        exact = replica(model, cloned).float()
        try:
            return exact, [adapted(trial, Cast(torch.float32)).run(exact) for trial in tries]
        except Exception:
            pass
    return model, [trial.run(model) for trial in tries]


def adapted(trial: Trial, *options: Option) -> Trial:
    """The trial with its tensors as the options want them."""
    args, kwargs = trial.args, trial.kwargs
    for option in options:
        args, kwargs = tree_map_only(torch.Tensor, option.place, (args, kwargs))
    return replace(trial, args=args, kwargs=kwargs)
