"""Digests of tensors that see what weaker hashes miss: a permuted batch, a flipped sign."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from ptools.repro.recording.magnitudes import magnitude

_CHUNK = 1 << 22  # words that are multiplied at once on a device
_GOLDEN = -0x61C8864680B583EB  # 2**64 over the golden ratio, as a signed number
_FINAL = -0x40A7B892E31B1A47


class Digester:
    """Digests tensors and counts the bytes that it read.

    Args:
        numbers: tell some of a tensor's numbers too, by which runs are compared within a tolerance.
    """

    def __init__(self, numbers: bool = False) -> None:
        self.nbytes = 0
        self._tells_numbers = numbers

    def of(self, tensor: torch.Tensor) -> int:
        """CRC-32 of a tensor's numbers, in the order of its indices.

        A tensor on a device is read there, by a sum of its words, each with a weight for its
        place; only the sum comes to the CPU.
        """
        return self._of(tensor.detach(), 0)

    def of_all(self, tensors: list[torch.Tensor]) -> int:
        """One digest of several tensors."""
        crc = 0
        for tensor in tensors:
            crc = self._of(tensor.detach(), crc)
        return crc

    def numbers(self, tensors: Sequence[torch.Tensor]) -> tuple[float, ...]:
        """What `magnitude` tells of tensors; nothing unless it was asked for."""
        return magnitude(tensors) if self._tells_numbers else ()

    def samples(self, batch: torch.Tensor) -> tuple[int, ...]:
        """A digest for each entry of the first dimension."""
        if batch.dim() == 0 or type(batch) is not torch.Tensor:
            return ()
        return tuple(self._of(one, 0) for one in batch.detach())

    def _of(self, tensor: torch.Tensor, crc: int) -> int:
        if tensor.device.type == "meta":
            return crc
        parts = _parts(tensor)
        if parts is not None:
            for part in parts:
                crc = self._of(part, crc)
            return crc
        if tensor.is_quantized:
            tensor = tensor.int_repr()
        tensor = tensor.resolve_conj().resolve_neg().contiguous()
        size = tensor.numel() * tensor.element_size()
        self.nbytes += size
        if tensor.device.type != "cpu":
            return zlib.crc32(_on_device(tensor).to_bytes(8, "little", signed=True), crc)
        return zlib.crc32((ctypes.c_char * size).from_address(tensor.data_ptr()), crc)


def _parts(tensor: torch.Tensor) -> list[torch.Tensor] | None:
    """The plain tensors that one is made of; None if it is plain itself."""
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.is_nested:
        return [tensor.values()] if tensor.layout is torch.jagged else list(tensor.unbind())
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    return None if flatten is None else [getattr(tensor, name) for name in flatten()[0]]


def _on_device(tensor: torch.Tensor) -> int:
    """A sum of 32-bit words, each mixed and weighted by its place, modulo 2**64."""
    flat = tensor.view(-1).view(torch.uint8)
    if flat.data_ptr() % 4:
        flat = flat.clone()
    whole = flat.numel() // 4 * 4
    words = flat[:whole].view(torch.int32)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, chunk in enumerate((*words.split(_CHUNK), flat[whole:])):
        values = chunk.to(torch.int64) + 1
        total = total * _FINAL + (values * _weights(tensor.device)[: len(values)]).sum() + number
    return int(total.item())


@lru_cache(maxsize=8)
def _weights(device: torch.device) -> torch.Tensor:
    places = torch.arange(_CHUNK, dtype=torch.int64, device=device) * _GOLDEN
    places = (places ^ (places >> 29)) * _FINAL
    return (places ^ (places >> 32)) | 1
