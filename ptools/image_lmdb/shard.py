"""One file of a database, opened to read: every byte checked, nothing mapped."""

import os
import weakref
import zlib
from array import array
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ptools.image_lmdb.errors import DamagedDatabase, NotADatabase
from ptools.image_lmdb.pages import Tree, last_value, open_tree, values
from ptools.image_lmdb.record import (
    KEY,
    PREFIX_BYTES,
    ROW_BYTES,
    Layout,
    Row,
    Stamp,
    classes_of,
    unpack_header,
    unpack_prefix,
    unpack_row,
)

_ROWS_AT_ONCE = 8192
_ROWS_FETCHED = 32 << 20  # bytes: as many are asked for when the file is opened
_HEADER = {"version": int, "classes": list, "images": int, "bytes": int, "paths_crc32": int}
_CHECK = "find what is damaged with: ptools lmdb verify {}"


class Shard:
    """A shard's images by their position in it.

    Reads with `pread` on a descriptor, so it may be shared by threads, forked,
    pickled and opened any number of times; a file that is cut short raises an error where a map
    would end the process with SIGBUS.

    Raises:
        NotADatabase: the file is none, or not one of ours.
        DamagedDatabase: the file is cut short, or its metadata is damaged.
    """

    def __init__(self, path: str | Path, first: int = 0) -> None:
        """`first` is what the messages count from: the index of its first image in the set."""
        self.path = Path(path)
        self._first = first
        try:
            # What turns out to be a pipe must not be waited for.
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            weakref.finalize(self, os.close, self._descriptor)
            self.tree = open_tree(self._descriptor, str(self.path))
        except OSError as error:
            raise NotADatabase(f"{self.path} cannot be read: {error.strerror}") from error
        self._end = (self.tree.last_page + 1) * self.tree.page_size
        self._layout, self._start = self._find_record(self.tree)
        self._advise_rows()

    def __reduce__(self) -> tuple[type["Shard"], tuple[Path, int]]:
        return Shard, (self.path, self._first)

    def __len__(self) -> int:
        return self._layout.images

    def _find_record(self, tree: Tree) -> tuple[Layout, int]:
        name = str(self.path)
        last = last_value(tree)
        if last is None or last.key != KEY:
            raise NotADatabase(
                f"{name} is an LMDB file, but ptools pack-lmdb did not write it to its end"
            )
        layout = unpack_prefix(os.pread(tree.descriptor, PREFIX_BYTES, last.offset), name)
        if layout.end != last.length or layout.images != tree.entries - 1:
            raise self._damaged("its metadata record does not fit")
        return layout, last.offset

    def _advise_rows(self) -> None:
        length = ROW_BYTES * len(self)
        if hasattr(os, "posix_fadvise") and length <= _ROWS_FETCHED:
            start = self._start + self._layout.rows_at
            os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_WILLNEED)

    @cached_property
    def header(self) -> dict[str, Any]:
        text = self._read(self._start + PREFIX_BYTES, self._layout.header_length)
        try:
            header = unpack_header(text, self._layout, str(self.path))
            fits = all(isinstance(header[name], kind) for name, kind in _HEADER.items())
        except (ValueError, LookupError, TypeError, RecursionError):  # written by somebody else
            fits = False
        if not fits:
            raise self._damaged("its metadata record is none of ptools")
        return header

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(classes_of(self.header))

    def row(self, index: int) -> Row:
        """Where image `index` lies, and its label."""
        start = self._start + self._layout.rows_at + ROW_BYTES * index
        data = os.pread(self._descriptor, ROW_BYTES, start)
        return self._checked(unpack_row(data), index)

    @property
    def rewritten(self) -> bool:
        """Whether another tool has moved the values since (as mdb_copy -c does)."""
        tree = self.tree
        return self._layout.stamp != Stamp(tree.last_page, tree.root, tree.transaction)

    def rows(self) -> Iterator[Row]:
        """All rows in order, read in large pieces."""
        for index, row in enumerate(self.stored_rows()):
            yield self._checked(row, index)

    def stored_rows(self) -> Iterator[Row | None]:
        """All rows as they were written, None for a damaged one."""
        for first in range(0, len(self), _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, len(self) - first)
            start = self._start + self._layout.rows_at + ROW_BYTES * first
            block = memoryview(self._read(start, ROW_BYTES * count))
            for index in range(count):
                yield unpack_row(block[ROW_BYTES * index : ROW_BYTES * (index + 1)])

    def read(self, row: Row, index: int) -> bytes:
        """The bytes of an image, compared with their checksum.

        Raises:
            DamagedDatabase: they are not what was packed.
        """
        data = os.pread(self._descriptor, row.length, row.offset)
        if len(data) != row.length or zlib.crc32(data) != row.crc32:
            what = "cut short" if len(data) != row.length else "damaged"
            raise self._damaged(f"image {self._first + index} ({self.path_of(row)!r}) is {what}")
        return data

    def advise(self, row: Row) -> None:
        """Have the system start to fetch an image that will be read soon."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, row.offset, row.length, os.POSIX_FADV_WILLNEED)

    def path_of(self, row: Row) -> str:
        """The relative path under which the image was packed."""
        start = self._start + self._layout.paths_at + row.path_at
        return os.fsdecode(self._read(start, row.path_length))

    def paths(self) -> Iterator[str]:
        """All paths, in order.

        Raises:
            DamagedDatabase: they are not what was written.
        """
        blob = self.path_bytes()
        for row in self.rows():
            yield os.fsdecode(blob[row.path_at : row.path_at + row.path_length])

    def path_bytes(self) -> bytes:
        """All paths in one piece, compared with their checksum."""
        blob = self._read(self._start + self._layout.paths_at, self._layout.paths_length)
        if zlib.crc32(blob) != self.header["paths_crc32"]:
            raise self._damaged("the paths are damaged")
        return blob

    @cached_property
    def _moved(self) -> "array[int] | None":
        """The offsets, if the file was rewritten by another tool (as mdb_copy -c does)."""
        if not self.rewritten:
            return None
        found = array("Q", (value.offset for value in values(self.tree)))
        return found[:-1]

    def _checked(self, row: Row | None, index: int) -> Row:
        if row is None:
            raise self._damaged(f"the metadata of image {self._first + index} is damaged")
        if self._moved is not None:
            row = row._replace(offset=self._moved[index])
        if row.offset + row.length > self._end:
            raise self._damaged(f"image {index} lies beyond its end")
        return row

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise self._damaged("it is cut short")
        return data

    def _damaged(self, what: str) -> DamagedDatabase:
        return DamagedDatabase(f"{self.path}: {what}", _CHECK.format(self.path))
