"""Compare two tensors where they lie: bytes piece by piece, numbers only where bytes differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ptools.checkpoint.data.casting import contiguous
from ptools.checkpoint.data.content import PIECE, Content, part_of
from ptools.checkpoint.pickles.tensors import ITEMSIZES, Tensor

_ELEMENTS = PIECE // 16  # compared at a time; the widest has 16 bytes
_MOST_EXPANDED = 64  # times its storage; no tensor that anyone saves repeats itself more often
_NUMBERS = {"quint8": "uint8", "qint8": "int8", "qint32": "int32"}  # how torch stores them


@dataclass(frozen=True)
class Difference:
    """How two tensors of one shape differ.

    `count` elements do: in their bits, or in their values where dtypes differ. `max_abs` is the
    largest difference of those that are numbers on both sides, `relative` that in terms of the
    first tensor's largest magnitude; None: no number says it. `not_finite` elements are NaN or
    infinite on one side at least.
    """

    count: int
    max_abs: float | None = None
    relative: float | None = None
    not_finite: int = 0


def difference(first: Tensor, second: Tensor) -> Difference | None:
    """How two tensors of one shape differ, None if they do not.

    Raises:
        ValueError: they cannot be compared: each is much larger than its memory.
        CorruptCheckpoint: their bytes cannot be read.
    """
    if first.storage is None or second.storage is None or not first.numel:
        return None
    same_dtype = first.dtype == second.dtype
    if same_dtype and first.stride == second.stride and _same_bytes(_span(first), _span(second)):
        return None
    first, second, times = _without_repeats(first, second)
    for tensor in (first, second):
        assert tensor.storage is not None
        if tensor.nbytes > _MOST_EXPANDED * tensor.storage.nbytes + PIECE:
            raise ValueError("it is expanded too far")
    reordered = same_dtype and first.stride != second.stride
    if reordered and _same_bytes(contiguous(first), contiguous(second)):
        return None
    found = _in_numbers(first, second)
    return replace(found, count=found.count * times) if found.count else None


def _span(tensor: Tensor) -> Content:
    """From the first byte that it sees to the last."""
    assert tensor.storage is not None
    size = ITEMSIZES[tensor.dtype]
    span = (tensor.reach - tensor.offset) * size
    return part_of(tensor.storage.content, tensor.offset * size, span)


def _without_repeats(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, int]:
    """Without the dimensions along which both are expanded, and how often that repeats each."""
    shape, times = [], 1
    for size, one, other in zip(first.shape, first.stride, second.stride, strict=True):
        repeated = one == other == 0
        shape.append(1 if repeated else size)
        times *= size if repeated else 1
    return replace(first, shape=tuple(shape)), replace(second, shape=tuple(shape)), times


def _same_bytes(first: Content, second: Content) -> bool:
    if first.nbytes != second.nbytes:
        return False
    blocks = zip(_blocks(first, PIECE), _blocks(second, PIECE), strict=True)
    return all(one == other for one, other in blocks)


def _blocks(content: Content, nbytes: int) -> Iterator[bytes]:
    """The bytes of a content, `nbytes` at a time, however it gives them."""
    waiting = b""
    for piece in content.pieces():
        waiting = waiting + piece.read() if waiting else piece.read()
        whole = len(waiting) - len(waiting) % nbytes
        for start in range(0, whole, nbytes):
            yield waiting[start : start + nbytes]
        waiting = waiting[whole:]
    if waiting:
        yield waiting


def _in_numbers(first: Tensor, second: Tensor) -> Difference:
    count = not_finite = 0
    largest, magnitude = -1.0, 0.0
    sides = (
        _blocks(contiguous(tensor), _ELEMENTS * ITEMSIZES[tensor.dtype])
        for tensor in (first, second)
    )
    for one, other in zip(*sides, strict=True):
        a, b = _numbers(one, first.dtype), _numbers(other, second.dtype)
        if first.dtype == second.dtype:
            differs = _bits(one, first.dtype).ne(_bits(other, first.dtype)).any(1)
        elif a is None or b is None:
            raise ValueError("torch does not convert its dtype")
        else:
            differs = (a != b) & ~(a.isnan() & b.isnan())
        count += int(differs.sum())
        if a is not None and b is not None:
            gap = (a[differs] - b[differs]).abs()
            not_finite += int((~gap.isfinite()).sum())
            largest = max(largest, _largest(gap))
            magnitude = max(magnitude, _largest(a.abs()))
    if largest < 0:
        return Difference(count, not_finite=not_finite)
    return Difference(count, largest, largest / magnitude if magnitude > 0 else None, not_finite)


def _bits(data: bytes, dtype: str) -> Any:
    import torch

    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, ITEMSIZES[dtype])


def _largest(values: Any) -> float:
    """The largest that is finite, -1 if there is none."""
    finite = values[values.isfinite()]
    return float(finite.max()) if finite.numel() else -1.0


def _numbers(data: bytes, dtype: str) -> Any:
    """Bytes as float64 or complex128, None where torch does not convert the dtype."""
    import torch

    try:
        values = torch.frombuffer(bytearray(data), dtype=getattr(torch, _NUMBERS.get(dtype, dtype)))
        return values.to(torch.complex128 if values.is_complex() else torch.float64)
    except (RuntimeError, TypeError, AttributeError, ValueError):
        return None
