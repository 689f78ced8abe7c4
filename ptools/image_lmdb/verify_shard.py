"""Check one file of a set, and list all that is wrong with it."""

import importlib
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

from ptools.errors import PtoolsError
from ptools.image_lmdb.pages import Value, values
from ptools.image_lmdb.pathset import PathSet
from ptools.image_lmdb.progress import Meter
from ptools.image_lmdb.record import KEY, Row
from ptools.image_lmdb.shard import Shard

_MOST_KEPT = 1000  # problems; the others are only counted
_PIECE = 4 << 20  # bytes
_UNKNOWN = 1 << 64  # a bound that holds for everything


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; `path` and `index` (in the set) where it is about an image."""

    file: str
    what: str
    path: str | None = None
    index: int | None = None


class Found:
    """Problems and notes, as they come up."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.count = 0
        self.notes: list[str] = []

    def add(self, problem: Problem) -> None:
        self.count += 1
        if len(self.problems) < _MOST_KEPT:
            self.problems.append(problem)


class ShardCheck:
    """The check of one file; `bytes` are those of its images, as its rows say."""

    def __init__(
        self,
        shard: Shard,
        first: int,  # index of its first image
        found: Found,
        meter: Meter,
        source: Path | None,
        met: PathSet,
    ) -> None:
        self._shard = shard
        self._first = first
        self._found = found
        self._meter = meter
        self._source = source
        self._met = met
        self._descriptor = shard.tree.descriptor
        self._end = (shard.tree.last_page + 1) * shard.tree.page_size
        self._labels = self._paths_length = _UNKNOWN
        self._walked = self._rows_whole = True
        self.bytes = 0

    def run(self) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        for problem in _structure(self._shard.path):
            self._add(problem)
        try:
            self._check_images(self._check_header())
        except PtoolsError as error:
            self._add(error.message)
        except OSError as error:
            self._add(f"it cannot be read: {error.strerror}")

    def _check_header(self) -> int | None:
        """Check what stands before and behind the rows; the sum of bytes that the header says."""
        try:
            header = self._shard.header
            self._labels = len(self._shard.classes)
        except PtoolsError as error:
            self._add(error.message)
            return None
        if header["images"] != len(self._shard):
            self._add(f"its header counts {header['images']:,} images, not {len(self._shard):,}")
        try:
            self._paths_length = len(self._shard.path_bytes())
        except PtoolsError as error:
            self._add(error.message)
        return int(header["bytes"])

    def _check_images(self, bytes_said: int | None) -> None:
        places = self._places()
        at_place = 0
        for index, row in enumerate(self._shard.stored_rows()):
            value = next(places)
            if value is not None and value.key != index.to_bytes(8, "big"):
                self._add(f"its key is {value.key!r}", None, index)
            if row is None:
                self._rows_whole = False
                self._add("its row in the metadata is damaged", None, index)
                continue
            self.bytes += row.length
            self._check_row(row, index)
            at_place += value is not None and row.offset == value.offset
            self._check_place(row, value, index)
            self._meter.add(1, row.length)
        last = next(places)
        if last is not None and last.key != KEY:
            self._add(f"its last key is {last.key!r}")
        next(places)  # the walk ends, and counts
        if self._rows_whole and bytes_said not in (None, self.bytes):
            self._add(f"its header counts {bytes_said:,} bytes, and its rows {self.bytes:,}")
        if self._shard.rewritten and self._walked:
            self._check_stamp(at_place)

    def _places(self) -> Iterator[Value | None]:
        """The values as the tree has them; None from where it is damaged on."""
        return chain(self._walk(), repeat(None))

    def _walk(self) -> Iterator[Value]:
        try:
            yield from values(self._shard.tree)
        except PtoolsError as error:
            self._walked = False
            self._add(error.message)

    def _check_row(self, row: Row, index: int) -> None:
        if row.label >= self._labels:
            self._add(f"its label is {row.label}, of {self._labels} classes", row, index)
        if row.path_at + row.path_length > self._paths_length:
            self._add("its path lies outside of the paths", None, index)

    def _check_place(self, row: Row, value: Value | None, index: int) -> None:
        offset = row.offset
        if value is None:
            if self._shard.rewritten:
                return  # nobody knows where it lies
        elif self._shard.rewritten:
            offset = value.offset
        elif value.offset != row.offset:
            self._add(f"its row places it at {row.offset}, and its key {value.offset}", row, index)
        if value is not None and value.length != row.length:
            self._add(f"it has {value.length:,} bytes, not {row.length:,}", row, index)
        if offset + row.length > self._end:
            self._add("it lies beyond the end of the file", row, index)
            return
        self._check_bytes(row._replace(offset=offset), index)

    def _check_bytes(self, row: Row, index: int) -> None:
        source = self._open_source(row, index)
        crc32, same = 0, True
        try:
            for at in range(0, row.length, _PIECE):
                piece = os.pread(self._descriptor, min(_PIECE, row.length - at), row.offset + at)
                crc32 = zlib.crc32(piece, crc32)
                if source is not None:
                    same = same and os.pread(source, len(piece), at) == piece
        except OSError as error:
            self._add(f"it cannot be read: {error.strerror}", row, index)
            return
        finally:
            if source is not None:
                os.close(source)
        if crc32 != row.crc32:
            self._add("its bytes are damaged", row, index)
        elif not same:
            self._add("it differs from its file", row, index)

    def _open_source(self, row: Row, index: int) -> int | None:
        """The file that an image was packed from, if it is there and of the same size."""
        path = self._path(row)
        if self._source is None or path is None:
            return None
        self._met.add(path)
        if path.startswith("/") or ".." in path.split("/"):
            self._add("its path leads out of the folder", row, index)
            return None
        try:
            # What has become a pipe must not be waited for.
            source = os.open(self._source / path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self._add(f"its file cannot be read: {reason}", row, index)
            return None
        status = os.fstat(source)
        if stat.S_ISREG(status.st_mode) and status.st_size == row.length:
            return source
        os.close(source)
        self._add(f"its file has {status.st_size:,} bytes, not {row.length:,}", row, index)
        return None

    def _check_stamp(self, at_place: int) -> None:
        name = self._shard.path.name
        if self._rows_whole and at_place == len(self._shard) > 0:
            self._add("its stamp is damaged: the places in its rows hold, and are not used")
        else:
            self._found.notes.append(f"{name} was rewritten by another tool: it opens slower")

    def _path(self, row: Row) -> str | None:
        with suppress(PtoolsError, OSError):
            return self._shard.path_of(row)
        return None

    def _add(self, what: str, row: Row | None = None, index: int | None = None) -> None:
        file = self._shard.path
        place = None if index is None else self._first + index
        path = None if row is None else self._path(row)
        self._found.add(Problem(file.name, what.removeprefix(f"{file}: "), path, place))


def _structure(file: Path) -> list[str]:
    """What py-lmdb's own walk over all pages finds, where it has one (from 2.2 on)."""
    try:
        walk: Callable[..., list[str]] = importlib.import_module("lmdb.verify").verify
    except ImportError:
        return []
    try:
        return [f"LMDB: {problem}" for problem in walk(str(file), subdir=False)]
    except Exception as error:  # of whatever kind: the bytes may be anything
        return [f"LMDB: {error or type(error).__name__}"]
