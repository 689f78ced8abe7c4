"""Where the bytes of a storage are, read piece by piece so that memory stays flat."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from ptools.checkpoint.errors import CorruptCheckpoint

PIECE = 1 << 18  # bytes; a multiple of every itemsize


class Piece(NamedTuple):
    """At most PIECE bytes, to be read in any thread."""

    nbytes: int
    read: Callable[[], bytes]


class Content(Protocol):
    """A run of bytes. `crc` is the CRC-32 that its source recorded, None if it did not."""

    @property
    def nbytes(self) -> int: ...

    @property
    def crc(self) -> int | None: ...

    def pieces(self) -> Iterator[Piece]: ...


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes that lie in a file as they are."""

    path: Path
    offset: int
    nbytes: int
    crc: int | None = None

    def pieces(self) -> Iterator[Piece]:
        file = _File(self.path)
        for start in range(0, self.nbytes, PIECE):
            count = min(PIECE, self.nbytes - start)
            yield Piece(count, partial(file.read, self.offset + start, count))


class _File:
    """An open file, closed when its last piece has been read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, nbytes: int) -> bytes:
        data = os.pread(self._descriptor, nbytes, offset)
        while len(data) < nbytes:
            more = os.pread(self._descriptor, nbytes - len(data), offset + len(data))
            if not more:
                missing = nbytes - len(data)
                raise CorruptCheckpoint(f"{self._path} ends {missing} bytes early")
            data += more
        return data


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes that the pickle itself holds."""

    data: bytes
    crc: int | None = None

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def pieces(self) -> Iterator[Piece]:
        for start in range(0, len(self.data), PIECE):
            data = self.data[start : start + PIECE]
            yield Piece(len(data), partial(bytes, data))


@dataclass(frozen=True, slots=True)
class Deflated:
    """Bytes that lie compressed in a zip archive; what comes out is `nbytes` long or refused."""

    path: Path
    offset: int
    compressed: int
    nbytes: int
    crc: int | None = None

    def pieces(self) -> Iterator[Piece]:
        waiting = b""
        for data in self._inflated():
            waiting += data
            if len(waiting) >= PIECE:  # as all other contents: no piece ends within an element
                yield Piece(PIECE, partial(bytes, waiting[:PIECE]))
                waiting = waiting[PIECE:]
        if waiting:
            yield Piece(len(waiting), partial(bytes, waiting))

    def _inflated(self) -> Iterator[bytes]:
        inflate = zlib.decompressobj(-15)
        left = self.nbytes
        for piece in FileRange(self.path, self.offset, self.compressed).pieces():
            data = piece.read()
            while data or (left and not inflate.eof):
                try:
                    out = inflate.decompress(data, PIECE)
                except zlib.error as error:
                    raise CorruptCheckpoint(f"{self.path}: {error}") from error
                data = inflate.unconsumed_tail
                left -= len(out)
                if left < 0:
                    raise CorruptCheckpoint(f"{self.path}: a record is longer than it says")
                if out:
                    yield out
                elif not data:
                    break
        if left:
            raise CorruptCheckpoint(f"{self.path}: a record is shorter than it says")


@dataclass(frozen=True, slots=True)
class Joined:
    """Several contents, one after the other."""

    parts: tuple[Content, ...]
    crc: int | None = None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def pieces(self) -> Iterator[Piece]:
        for part in self.parts:
            yield from part.pieces()


def part_of(content: Content, start: int, nbytes: int) -> Content:
    """`nbytes` of a content from `start` on; its recorded CRC no longer applies."""
    if start == 0 and nbytes == content.nbytes:
        return content
    if isinstance(content, FileRange):
        return FileRange(content.path, content.offset + start, nbytes)
    return _Part(content, start, nbytes)


@dataclass(frozen=True, slots=True)
class _Part:
    whole: Content
    start: int
    nbytes: int
    crc: None = None

    def pieces(self) -> Iterator[Piece]:
        at = -self.start
        for piece in self.whole.pieces():
            data = piece.read()
            wanted = data[max(0, -at) : max(0, self.nbytes - at)]
            at += len(data)
            if wanted:
                yield Piece(len(wanted), partial(bytes, wanted))
            if at >= self.nbytes:
                return


def read_at(path: Path, offset: int, nbytes: int) -> bytes:
    """Exactly `nbytes` of a file.

    Raises:
        CorruptCheckpoint: the file ends before.
    """
    return _File(path).read(offset, nbytes)
