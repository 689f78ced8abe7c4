"""Tensors that lie in files as boxes, such as the shards of a sharded weight."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ptools.checkpoint.data.content import PIECE, Piece
from ptools.checkpoint.errors import CorruptCheckpoint

_MOST_SPLIT = 8  # dimensions along which one tensor is sharded

Sizes: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A box of a tensor, as it lies in a file.

    `at` is its place in the tensor; `stride` tells how its elements lie from `offset` on, without
    gaps, in any order of the dimensions. Both count elements.
    """

    path: Path
    offset: int
    at: tuple[int, ...]
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Interleaved:
    """A contiguous tensor of blocks that take turns in its memory, such as shards by column."""

    shape: tuple[int, ...]
    itemsize: int
    blocks: tuple[Block, ...]
    crc: None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    def pieces(self) -> Iterator[Piece]:
        for at, shape in _slabs(self.shape, PIECE // self.itemsize):
            read = partial(_slab, self.blocks, self.itemsize, at, shape)
            yield Piece(math.prod(shape) * self.itemsize, read)


def _slabs(shape: tuple[int, ...], most: int) -> Iterator[tuple[list[int], list[int]]]:
    """Place and shape of boxes of at most `most` elements, which follow each other in memory."""
    split = len(shape) - 1
    while split and math.prod(shape[split:]) <= most:
        split -= 1
    outer, inner = shape[:split], shape[split + 1 :]
    rows = most // math.prod(inner)
    for index in product(*map(range, outer)):
        for row in range(0, shape[split], rows):
            count = min(rows, shape[split] - row)
            yield [*index, row, *(0 for _ in inner)], [*(1 for _ in outer), count, *inner]


def _slab(
    blocks: Sequence[Block], itemsize: int, slab_at: Sequence[int], shape: Sequence[int]
) -> bytes:
    """The bytes of a box of a tensor, from all blocks that reach into it."""
    unit = min(itemsize, 8)  # a complex128 is two
    out = _units(bytearray(math.prod(shape) * itemsize), unit)
    target_stride = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    for block in blocks:
        axes, source, target = [], 0, 0
        for at, size, start, extent, from_stride, to_stride in zip(
            block.at, block.shape, slab_at, shape, block.stride, target_stride, strict=True
        ):
            low, high = max(at, start), min(at + size, start + extent)
            axes.append(_Axis(high - low, from_stride, to_stride))
            source += (low - at) * from_stride
            target += (low - start) * to_stride
        if min(axis.size for axis in axes) > 0:
            if itemsize > unit:
                axes = [_Axis(size, 2 * source, 2 * to) for size, source, to in axes]
                axes, source, target = [*axes, _Axis(2, 1, 1)], 2 * source, 2 * target
            _copy(block, unit, axes, source, out[target:])
    return out.tobytes()


class _Axis(NamedTuple):
    size: int
    source: int  # strides
    target: int


def _units(data: bytes | bytearray, nbytes: int) -> memoryview[int]:
    """Bytes as numbers of 1, 2, 4 or 8 bytes, which slices then move at once."""
    view = memoryview(data)
    match nbytes:
        case 1:
            return view
        case 2:
            return view.cast("H")
        case 4:
            return view.cast("I")
    return view.cast("Q")


def _copy(block: Block, unit: int, axes: Sequence[_Axis], start: int, out: memoryview[int]) -> None:
    """Copy from a block in runs that follow each other in its file, though maybe not in `out`."""
    *outer, run = _runs_last(axes)
    sources = product(*(range(0, size * stride, stride) for size, stride, _ in outer))
    targets = product(*(range(0, size * stride, stride) for size, _, stride in outer))
    reach = (run.size - 1) * run.target + 1
    with block.path.open("rb", buffering=0) as file:
        for from_, to in zip(sources, targets, strict=True):
            source, target = start + sum(from_), sum(to)
            data = os.pread(file.fileno(), run.size * unit, block.offset + source * unit)
            if len(data) < run.size * unit:
                raise CorruptCheckpoint(f"{block.path} ends early")
            out[target : target + reach : run.target] = _units(data, unit)


def _runs_last(axes: Sequence[_Axis]) -> list[_Axis]:
    """The same axes in as few as will do, the one along which the source is contiguous last."""
    joined: list[_Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        whole = axis.size * axis.source, axis.size * axis.target
        if joined and joined[-1][1:] == whole:
            axis = _Axis(joined.pop().size * axis.size, axis.source, axis.target)
        joined.append(axis)
    run = next((axis for axis in joined if axis.source == 1), None)
    if run is None:
        return [*joined, _Axis(1, 1, 1)]
    return [*(axis for axis in joined if axis is not run), run]


def check_cover(name: str, shape: Sizes, boxes: Sequence[tuple[Sizes, Sizes]]) -> None:
    """Refuse boxes that leave holes in the tensor or overlap.

    A box is the sum of what lies above each of its corners, taken with alternating signs. Boxes
    that are a tensor together have its corners and no other ones: all others cancel.
    """
    if any(len(at) != len(shape) or len(sizes) != len(shape) for at, sizes in boxes):
        raise CorruptCheckpoint(f"{name} has shards of another number of dimensions")
    split = [
        axis
        for axis in range(len(shape))
        if any((at[axis], sizes[axis]) != (0, shape[axis]) for at, sizes in boxes)
    ]
    if len(split) > _MOST_SPLIT:
        raise CorruptCheckpoint(f"{name} is sharded along {len(split)} dimensions")
    corners: Counter[Sizes] = Counter()
    whole = tuple(0 for _ in shape), shape
    for weight, (at, sizes) in [(-1, whole), *((1, box) for box in boxes)]:
        if not math.prod(sizes):
            continue
        ends = [((at[axis], 1), (at[axis] + sizes[axis], -1)) for axis in split]
        for corner in product(*ends):
            place = tuple(position for position, _ in corner)
            corners[place] += weight * math.prod(sign for _, sign in corner)
    if any(corners.values()):
        missing = math.prod(shape) - sum(math.prod(sizes) for _, sizes in boxes)
        what = f"lack {missing} of its elements" if missing > 0 else "overlap"
        raise CorruptCheckpoint(f"{name} cannot be put together: its shards {what}")
