"""Numbers of a tensor that show why an operation failed on it."""

from __future__ import annotations

import math

import torch

from ptools.debug.findings import TensorStats
from ptools.debug.finite import values_of


def stats_of(name: str, tensor: torch.Tensor) -> TensorStats:
    """Count what is zero, NaN and infinite in a tensor.

    Args:
        name: what the reader knows the tensor by.
        tensor: of any kind; a complex number counts by its absolute value, and of a sparse tensor
            only the values that are there.
    """
    numbers = values_of(tensor)
    kind = str(tensor.dtype).removeprefix("torch.")
    if numbers is None:
        return TensorStats(name, tuple(tensor.shape), kind, None, None, 0, 0, 0)
    sizes = numbers.abs() if numbers.is_complex() else numbers
    finite = torch.isfinite(sizes)
    rest = sizes[finite]
    bad = torch.isnan(sizes) if torch.isnan(sizes).any() else ~finite
    first = bad.nonzero()[:1].tolist() if numbers.layout is tensor.layout else []
    return TensorStats(
        name=name,
        shape=tuple(tensor.shape),
        dtype=kind,
        min=rest.min().item() if rest.numel() else None,
        max=rest.max().item() if rest.numel() else None,
        zeros=int((sizes == 0).sum()),
        nans=int(torch.isnan(sizes).sum()),
        infs=int(torch.isinf(sizes).sum()),
        where=tuple(first[0]) if first else None,
        negative_infs=int((sizes == -math.inf).sum()),
    )
