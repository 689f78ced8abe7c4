"""Move contents through a few threads: read, checksum, and write to their places in a file."""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from ptools.checkpoint.data.content import Content, Piece

_THREADS = 2  # reading, checking and writing overlap; on local disks more do not help
_RUN = 64  # pieces that one thread takes at a time
_POLYNOMIAL = 0xEDB88320  # CRC-32's, reflected

Advance = Callable[[float], None]  # told how many bytes are done


@dataclass(frozen=True, slots=True)
class Copied:
    """A content, where it was written, and the CRC-32 of what should be there."""

    content: Content
    at: int
    crc: int

    @property
    def end(self) -> int:
        return self.at + self.content.nbytes


def write_contents(
    descriptor: int, placed: Sequence[tuple[int, Content]], advance: Advance
) -> list[Copied]:
    """Write each content at its offset in an open file.

    A CRC-32 that the source recorded is taken as it is: what was written is to be read back and
    compared with it, which verifies the source as well.

    Raises:
        CorruptCheckpoint: a content cannot be read to its end.
    """

    def write(run: list[Piece], at: int, known: int | None) -> int:
        crc = 0
        for piece in run:
            data = piece.read()
            if known is None:
                crc = zlib.crc32(data, crc)
            write_all(descriptor, data, at)
            at += len(data)
        return crc

    crcs = _through_threads(placed, write, advance)
    return [
        Copied(content, at, crc if content.crc is None else content.crc)
        for (at, content), crc in zip(placed, crcs, strict=True)
    ]


def checksums(contents: Iterable[Content], advance: Advance) -> list[int]:
    """The CRC-32 of each content, read anew."""

    def read(run: list[Piece], at: int, known: int | None) -> int:
        crc = 0
        for piece in run:
            crc = zlib.crc32(piece.read(), crc)
        return crc

    return _through_threads(((0, content) for content in contents), read, advance)


def _through_threads(
    placed: Iterable[tuple[int, Content]],
    work: Callable[[list[Piece], int, int | None], int],
    advance: Advance,
) -> list[int]:
    crcs: list[int] = []
    waiting: deque[tuple[int, int, Future[int]]] = deque()

    def finish_one() -> None:
        index, nbytes, future = waiting.popleft()
        crcs[index] = combined_crc(crcs[index], future.result(), nbytes)
        advance(nbytes)

    with ThreadPoolExecutor(_THREADS) as threads:
        try:
            for index, (at, content) in enumerate(placed):
                crcs.append(0)
                for run in _runs(content):
                    nbytes = sum(piece.nbytes for piece in run)
                    waiting.append((index, nbytes, threads.submit(work, run, at, content.crc)))
                    at += nbytes
                    if len(waiting) > 2 * _THREADS:
                        finish_one()
            while waiting:
                finish_one()
        finally:
            threads.shutdown(cancel_futures=True)
    return crcs


def _runs(content: Content) -> Iterator[list[Piece]]:
    pieces = content.pieces()
    while run := list(islice(pieces, _RUN)):
        yield run


def write_all(descriptor: int, data: bytes, at: int) -> None:
    """Write all the data at an offset; the system may take it in parts."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, at)
        view, at = view[count:], at + count


def combined_crc(first: int, second: int, nbytes: int) -> int:
    """The CRC-32 of two runs of bytes, one after the other, of which the second has `nbytes`.

    crc(a + b) = crc(a) * x^(8 |b|) + crc(b), modulo the polynomial (zlib's crc32_combine).
    """
    return _times(_power_of_x(8 * nbytes), first) ^ second


@lru_cache
def _power_of_x(exponent: int) -> int:
    result, square = 1 << 31, 1 << 30  # x^0 and x^1: the highest bit is the lowest power
    while exponent:
        if exponent & 1:
            result = _times(square, result)
        square = _times(square, square)
        exponent >>= 1
    return result


def _times(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
