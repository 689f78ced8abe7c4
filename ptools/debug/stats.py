"""Numbers of a tensor that show why an operation failed on it."""

from __future__ import annotations

import torch

from ptools.debug.findings import TensorStats


def stats_of(name: str, tensor: torch.Tensor) -> TensorStats:
    """Count what is zero, NaN and infinite in a tensor of real numbers."""
    values = tensor.detach()
    finite = torch.isfinite(values)
    bad = (~finite).nonzero()
    rest = values[finite]
    return TensorStats(
        name=name,
        shape=tuple(values.shape),
        dtype=str(values.dtype).removeprefix("torch."),
        min=rest.min().item() if rest.numel() else None,
        max=rest.max().item() if rest.numel() else None,
        zeros=int((values == 0).sum()),
        nans=int(torch.isnan(values).sum()),
        infs=int(torch.isinf(values).sum()),
        where=tuple(bad[0].tolist()) if len(bad) else None,
    )
