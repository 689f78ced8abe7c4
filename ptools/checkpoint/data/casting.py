"""Numbers in another dtype or order, piece by piece. Only what needs it imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ptools.checkpoint.data.content import PIECE, Content, FileRange, Literal, Piece, part_of
from ptools.checkpoint.pickles.tensors import ITEMSIZES, Tensor

FLOATS = ("float32", "float16", "bfloat16", "float64")
SHORT = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Cast:
    """A content of one floating-point dtype, rounded to another as torch's `Tensor.to` does."""

    source: Content
    old: str
    new: str
    crc: None = None

    @property
    def nbytes(self) -> int:
        return self.source.nbytes // ITEMSIZES[self.old] * ITEMSIZES[self.new]

    def pieces(self) -> Iterator[Piece]:
        for piece in self.source.pieces():
            nbytes = piece.nbytes // ITEMSIZES[self.old] * ITEMSIZES[self.new]
            yield Piece(nbytes, partial(_cast, piece, self.old, self.new))


def _cast(piece: Piece, old: str, new: str) -> bytes:
    import torch

    numbers = torch.frombuffer(bytearray(piece.read()), dtype=getattr(torch, old))
    data = numbers.to(getattr(torch, new)).view(torch.uint8).numpy().tobytes()
    return bytes(data)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The elements of a strided tensor in the order of its dimensions."""

    tensor: Tensor
    crc: None = None

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def pieces(self) -> Iterator[Piece]:
        elements = _elements(self.tensor)
        while elements.shape[0] == 1 and elements.ndim > 1:
            elements = elements[0]
        row = self.nbytes // len(elements)
        step = max(1, PIECE // row)
        for start in range(0, len(elements), step):
            rows = elements[start : start + step]
            yield Piece(len(rows) * row, rows.tobytes)


def _elements(tensor: Tensor) -> Any:
    """The tensor as an array of opaque elements on its bytes, mapped where they are a file's."""
    import mmap

    import numpy as np

    assert tensor.storage is not None
    content, size = tensor.storage.content, ITEMSIZES[tensor.dtype]
    buffer: Any
    if isinstance(content, FileRange):
        with content.path.open("rb") as file:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = content.offset
    else:
        buffer, start = b"".join(piece.read() for piece in content.pieces()), 0
    return np.ndarray(
        tensor.shape,
        dtype=f"V{size}",
        buffer=buffer,
        offset=start + tensor.offset * size,
        strides=[step * size for step in tensor.stride],
    )


def contiguous(tensor: Tensor) -> Content:
    """The bytes of a tensor in the order of its dimensions."""
    assert tensor.storage is not None
    if not tensor.numel:
        return Literal(b"")
    if not tensor.contiguous:
        return Gathered(tensor)
    start = tensor.offset * ITEMSIZES[tensor.dtype]
    return part_of(tensor.storage.content, start, tensor.nbytes)
