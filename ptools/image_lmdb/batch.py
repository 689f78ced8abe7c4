"""The files of one block: read, looked at, and laid out as the pages that will hold them."""

import errno
import os
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

from ptools.errors import PtoolsError
from ptools.image_lmdb.ahead import OPEN_FLAGS, Block
from ptools.image_lmdb.check import is_clipped_grey, problem
from ptools.image_lmdb.pages import HEADER
from ptools.image_lmdb.plan import Options
from ptools.image_lmdb.recode import NotRecoded, recoded
from ptools.image_lmdb.report import Skipped
from ptools.image_lmdb.scan import Entry
from ptools.image_lmdb.sizes import LARGEST_IN_LEAF, PAGE_BYTES, pages_for

_CAPACITY = 1 << 20  # bytes: what most blocks take
_ZEROS = bytes(PAGE_BYTES)
_GONE = "changed while it was packed"


class Value(NamedTuple):
    """An image of a batch."""

    path: bytes
    label: int
    length: int
    crc32: int
    at: int  # where its pages start in the batch; -1 if it fits a leaf
    small: bytes  # the image, if it fits a leaf


@dataclass
class Tally:
    """What came of the files of a block."""

    files: int = 0
    file_bytes: int = 0
    source_bytes: int = 0  # of the files that were packed
    clipped_grey: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    kept: list[Skipped] = field(default_factory=list)

    def add(self, more: "Tally") -> None:
        """Count those of another block."""
        self.files += more.files
        self.file_bytes += more.file_bytes
        self.source_bytes += more.source_bytes
        self.clipped_grey += more.clipped_grey
        self.skipped += more.skipped
        self.kept += more.kept


class Batch:
    """Images that are to be placed in a shard together."""

    def __init__(self) -> None:
        self._view = memoryview(bytearray(_CAPACITY))
        self.clear()

    def clear(self) -> None:
        """Make it empty; memory that a large file took is let go."""
        if len(self._view) > _CAPACITY:
            self._view = memoryview(bytearray(_CAPACITY))
        self.values: list[Value] = []
        self.tally = Tally()
        self.failure: Skipped | None = None  # what ends the packing
        self._end = 0

    @property
    def pages(self) -> memoryview:
        """The pages of all values that do not fit a leaf, without their headers."""
        return self._view[: self._end]

    def add(self, data: bytes | memoryview, path: str, label: int) -> None:
        """Add an image."""
        self._room(len(data))[:] = data
        self._keep(len(data), path, label)

    def load(self, folder: int, block: Block, options: Options) -> None:
        """Read the files of a block, whose paths count from the open `folder`.

        Raises:
            PtoolsError: this process may not open more files.
        """
        self.clear()
        tally, check, recode = self.tally, options.check, options.recode
        for entry in block:
            room = self._room(entry.size + 1)
            reason = unreadable = _read(folder, entry, room)
            data: memoryview | bytes = room[: entry.size]
            if reason is None:
                reason = problem(data, check)
            if reason is None and recode is not None:
                try:
                    data = recoded(bytes(data), recode)
                except NotRecoded as error:
                    reason = str(error)
            if reason is not None:
                bad = Skipped(entry.path, reason)
                if options.on_error == "fail":
                    self.failure = bad
                    return
                if unreadable or options.on_error == "skip":
                    tally.skipped.append(bad)
                    continue
                tally.kept.append(bad)
            tally.clipped_grey += is_clipped_grey(data)
            tally.source_bytes += entry.size
            if recode is None:
                self._keep(entry.size, entry.path, entry.label)
            else:
                self.add(data, entry.path, entry.label)
        tally.files = len(block)
        tally.file_bytes = sum(entry.size for entry in block)

    def _room(self, length: int) -> memoryview:
        """Where the next value is put."""
        start = self._end + HEADER
        needed = start + length + PAGE_BYTES
        if needed > len(self._view):
            view = memoryview(bytearray(max(needed, 2 * len(self._view))))
            view[: self._end] = self.pages
            self._view = view
        return self._view[start : start + length]

    def _keep(self, length: int, path: str, label: int) -> None:
        """Make what was put there the next value."""
        start = self._end + HEADER
        data = self._view[start : start + length]
        name = path.encode("utf-8", "surrogateescape")  # os.fsencode takes three times as long
        if length <= LARGEST_IN_LEAF:
            self.values.append(Value(name, label, length, zlib.crc32(data), -1, bytes(data)))
            return
        self.values.append(Value(name, label, length, zlib.crc32(data), self._end, b""))
        self._end += pages_for(length) * PAGE_BYTES
        self._view[start + length : self._end] = _ZEROS[: self._end - start - length]


def _read(folder: int, entry: Entry, room: memoryview) -> str | None:
    """Read a file, which must still have its size and time afterwards; or why it cannot be had."""
    path, _, size, mtime_ns = entry
    try:
        descriptor = os.open(path, OPEN_FLAGS, dir_fd=folder)
        try:
            length = os.readv(descriptor, (room,))
            while length < size and (more := os.readv(descriptor, (room[length:],))):
                length += more
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # not this file's fault
            message = f"cannot open another file: {error.strerror}"
            raise PtoolsError(message, hint="allow more with: ulimit -n 1024") from error
        return error.strerror or str(error)
    if length != size or status.st_size != size or status.st_mtime_ns != mtime_ns:
        return _GONE
    return None
