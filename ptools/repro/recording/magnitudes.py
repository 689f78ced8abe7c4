"""Some numbers of a tensor, by which it is compared within a tolerance."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_SAMPLES = 8
_DIGITS = 9  # tell each float32 from the next


def magnitude(tensors: Sequence[torch.Tensor]) -> tuple[float, ...]:
    """The root mean square of tensors, as of one, and up to 8 of their numbers.

    The numbers stand at fixed places of all the tensors one after the other. The sum of squares is
    taken in float64. Empty where there are no floating-point numbers, or none that can be read.
    """
    flats = [_flat(one.detach()) for one in tensors if _has_numbers(one)]
    count = sum(map(len, flats))
    if not count:
        return ()
    norms = torch.stack([_norm(one).to(flats[0].device) for one in flats])
    chosen = _samples(flats, count)
    if all(one.dtype != torch.float64 for one in flats):
        chosen = [float(f"{one:.{_DIGITS}g}") for one in chosen]
    return float(_norm(norms)) / count**0.5, *chosen


def _has_numbers(tensor: torch.Tensor) -> bool:
    is_plain = tensor.layout is torch.strided and not tensor.is_nested
    is_told = (
        is_plain and tensor.device.type != "meta" and not hasattr(tensor, "__tensor_flatten__")
    )
    return is_told and (tensor.is_floating_point() or tensor.is_complex())


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.element_size() == 1:  # nothing is computed with 8 bits
        tensor = tensor.float()
    return tensor.reshape(-1)


def _norm(flat: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(flat, dtype=torch.float64)
    return norm


def _samples(flats: list[torch.Tensor], count: int) -> list[float]:
    """Numbers at even distances."""
    every = max(1, count // _SAMPLES)
    found: list[float] = []
    at = every // 2
    for flat in flats:
        if at < len(flat):
            found += flat[at::every][: _SAMPLES - len(found)].tolist()
        at = at - len(flat) if at >= len(flat) else (at - len(flat)) % every
    return found[:_SAMPLES]
