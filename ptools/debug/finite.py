"""Whether numbers are finite: as few operations, and readings of the device, as can be."""

from __future__ import annotations

import math

import torch
from torch import nn

CHECKED = frozenset(
    {
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.complex64,
        torch.complex128,
    }
)
PLAIN = frozenset({torch.Tensor, nn.Parameter, nn.Buffer})
_FEW = 100_000  # numbers that are copied in less time than they are called for one by one


def values_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The numbers of a tensor that can be read and can be NaN; None if there are none."""
    if type(tensor) not in PLAIN:  # a DTensor has a part here; others may have no numbers
        part = getattr(tensor, "_local_tensor", None)
        return None if part is None else values_of(part)
    if tensor.dtype not in CHECKED or tensor.device.type == "meta":
        return None
    values = tensor.detach()
    if values.layout is torch.strided:
        return values
    return values._values() if values.layout is torch.sparse_coo else values.values()


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite."""
    values = values_of(tensor)
    if values is None or not values.numel():
        return True
    total = values.sum().item()
    # Not even zero are NaN - NaN and inf - inf; a sum of finite numbers may overflow.
    return total - total == 0 or bool(torch.isfinite(values).all())


def has_nan(tensor: torch.Tensor) -> bool:
    """Whether a number of a tensor is NaN."""
    values = values_of(tensor)
    return values is not None and bool(torch.isnan(values).any())


def all_finite(tensors: list[torch.Tensor]) -> bool:
    """Whether all numbers of all tensors are finite; one reading of an accelerator for all."""
    try:
        if not PLAIN.issuperset(map(type, tensors)):
            total = math.nan
        elif sum(map(torch.Tensor.numel, tensors)) < _FEW:
            total = torch._C._nn.flatten_dense_tensors(tensors).sum().item()
        else:
            total = torch.stack(torch._foreach_norm(tensors)).sum().item()
    except (RuntimeError, NotImplementedError):  # sparse, of several devices or types ...
        total = math.nan
    # The sums and squares of large numbers may overflow.
    return total - total == 0 or all(map(is_finite, tensors))
