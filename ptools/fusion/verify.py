"""Compare what two models say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import reduce
from typing import Any

import torch

from ptools.fusion.report import Difference

_DEPTH = 8  # of wrappers around a tensor, beyond which an object may well refer to itself

FAR = Difference(float("inf"), float("inf"), 0.0, rms=float("inf"))


def difference(expected: Any, got: Any) -> Difference:
    """How far the tensors in one output are from those in another of the same structure.

    Infinite where the structures, shapes or integers differ, or what was finite is not.
    """
    pairs = list(zip(_tensors(expected), _tensors(got), strict=False))
    if len(_tensors(expected)) != len(_tensors(got)) or any(a.shape != b.shape for a, b in pairs):
        return FAR
    return worst(_of_tensors(a, b) for a, b in pairs)


def has_numbers(output: Any) -> bool:
    """Whether there is anything in it to compare."""
    return any(tensor.isfinite().any() for tensor in _tensors(output))


def worst(differences: Iterable[Difference]) -> Difference:
    """The largest of each measure; of the shares of rows, their mean."""
    return reduce(_worse, differences, Difference(0.0, 0.0, 1.0))


def _worse(a: Difference, b: Difference) -> Difference:
    rows = a.rows + b.rows
    same = (a.top1 or 0) * a.rows + (b.top1 or 0) * b.rows
    return Difference(
        max(a.max_abs, b.max_abs),
        max(a.relative, b.relative),
        min(a.cosine, b.cosine),
        same / rows if rows else None,
        rows,
        max(a.rms, b.rms),
    )


def _of_tensors(expected: torch.Tensor, got: torch.Tensor) -> Difference:
    if not expected.numel():
        return Difference(0.0, 0.0, 1.0)
    a, b = expected.double(), got.double()
    finite = a.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return FAR
    if not b[finite].isfinite().all():
        return FAR
    a, b = a.where(finite, 0), b.where(finite, 0)
    apart = (a - b).abs()
    largest = apart.max().item()
    spread = a.std().item() if a.numel() > 1 else 0.0
    if spread == 0:
        spread = a.abs().max().item()
    relative = largest / spread if spread else (float("inf") if largest else 0.0)
    rms = apart.square().mean().sqrt().item() / spread if spread else relative
    norms = (a.norm() * b.norm()).item()
    cosine = min(1.0, (a.flatten() @ b.flatten()).item() / norms) if norms else 1.0
    rows = len(a) if a.dim() == 2 and a.shape[1] > 1 and expected.is_floating_point() else 0
    same = (a.argmax(1) == b.argmax(1)).double().mean().item() if rows else None
    return Difference(largest, relative, cosine, same, rows, rms)


def _tensors(output: Any, depth: int = 0) -> list[torch.Tensor]:
    """Those in an output, and numbers as such, in whatever classes they are wrapped."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, bool | int | float | complex) or hasattr(output, "__array__"):
        return [torch.as_tensor(output)]
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, list | tuple):
        parts = list(output)
    elif is_dataclass(output):
        parts = [getattr(output, each.name) for each in fields(output)]
    else:
        parts = list(getattr(output, "__dict__", {}).values())
    below = parts if depth < _DEPTH else []
    return [tensor for part in below for tensor in _tensors(part, depth + 1)]
