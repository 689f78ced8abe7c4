"""Write one shard: values in order through liblmdb, then the metadata record."""

import ctypes
import os
import zlib
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import lmdb

from ptools.image_lmdb.errors import DamagedDatabase
from ptools.image_lmdb.pages import open_tree, values
from ptools.image_lmdb.record import (
    KEY,
    PREFIX_BYTES,
    ROW_BYTES,
    STAMP_AT,
    Stamp,
    pack_record,
    pack_row,
    pack_stamp,
    unpack_prefix,
)
from ptools.image_lmdb.sizes import PAGE_BYTES

_TRANSACTION = 128 << 10  # bytes: larger writes cost the system more, and leave the cache
_REOPEN = 32 << 20  # bytes: after these, the pages that the map has touched are let go
_KEPT = 16 << 20  # bytes of freed memory
_READ_BACK = 100  # one image in so many, and the last
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


class ShardWriter:
    """Images are added in order; `finish` makes the file complete and puts it on the disk.

    Raises:
        lmdb.MapFullError: the file would become larger than `file_bytes`.
        lmdb.Error: the disk is full or failed.
    """

    def __init__(self, path: Path, file_bytes: int) -> None:
        _keep_freed_memory()
        path.unlink(missing_ok=True)
        self.path = path
        self.images = 0
        self.bytes = 0
        self._map_size = -(-file_bytes // PAGE_BYTES) * PAGE_BYTES
        self._lengths, self._labels, self._crc32s = array("I"), array("I"), array("I")
        self._path_lengths, self._paths = array("H"), bytearray()
        self._pending = self._since_open = 0
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._transaction.abort()
        self._environment.close()

    def add(self, data: bytes, path: str, label: int) -> None:
        """Add an image under the next key."""
        self._put(self.images.to_bytes(8, "big"), data)
        name = path.encode("utf-8", "surrogateescape")  # os.fsencode takes three times as long
        self._lengths.append(len(data))
        self._labels.append(label)
        self._crc32s.append(zlib.crc32(data))
        self._path_lengths.append(len(name))
        self._paths += name
        self.images += 1
        self.bytes += len(data)

    def finish(self, classes: Sequence[str]) -> int:
        """Write the metadata record, check the file, sync it; returns its size in bytes."""
        header = {
            "classes": classes,
            "images": self.images,
            "bytes": self.bytes,
            "paths_crc32": zlib.crc32(self._paths),
        }
        self._put(KEY, pack_record(header, bytes(ROW_BYTES * self.images), self._paths))
        self._transaction.commit()
        self._environment.close()
        with self.path.open("r+b", buffering=0) as file:
            self._write_rows(file.fileno())
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def _open(self) -> None:
        # No sync: the file has no name that counts before `finish` has synced it as a whole.
        self._environment: Any = lmdb.open(
            str(self.path), subdir=False, map_size=self._map_size, sync=False, lock=False, max_dbs=0
        )
        self._transaction: Any = self._environment.begin(write=True)

    def _put(self, key: bytes, data: bytes) -> None:
        # liblmdb refuses to append a key out of order by its result alone.
        if not self._transaction.put(key, data, append=True):
            raise AssertionError(f"key {key!r} is out of order")
        self._pending += len(data)
        if self._pending > _TRANSACTION:
            self._commit()

    def _commit(self) -> None:
        self._transaction.commit()
        self._since_open += self._pending
        self._pending = 0
        if self._since_open > _REOPEN:
            self._since_open = 0
            self._environment.close()
            self._open()
        else:
            self._transaction = self._environment.begin(write=True)

    def _write_rows(self, descriptor: int) -> None:
        """Fill in the rows of the record, now that no value moves any more."""
        name = str(self.path)
        tree = open_tree(descriptor, name)
        offsets = array("Q", (value.offset for value in values(tree)))
        record = offsets.pop()
        layout = unpack_prefix(os.pread(descriptor, PREFIX_BYTES, record), name)
        os.pwrite(descriptor, self._rows(offsets), record + layout.rows_at)
        stamp = Stamp(tree.last_page, tree.root, tree.transaction)
        os.pwrite(descriptor, pack_stamp(stamp), record + STAMP_AT)
        for index in {*range(0, self.images, _READ_BACK), self.images - 1} - {-1}:
            self._read_back(descriptor, index, offsets[index])

    def _rows(self, offsets: "array[int]") -> bytearray:
        rows, path_at = bytearray(), 0
        columns = offsets, self._lengths, self._labels, self._crc32s, self._path_lengths
        for offset, length, label, crc32, path_length in zip(*columns, strict=True):
            rows += pack_row(offset, length, label, crc32, path_at, path_length)
            path_at += path_length
        return rows

    def _read_back(self, descriptor: int, index: int, offset: int) -> None:
        if zlib.crc32(os.pread(descriptor, self._lengths[index], offset)) != self._crc32s[index]:
            raise DamagedDatabase(
                f"{self.path} does not hold what was written to it", "check the disk and its memory"
            )


def _keep_freed_memory() -> None:
    """Have glibc keep what a transaction frees for the next one: half of the time was page faults.

    Elsewhere than on glibc there is no such call, and nothing happens.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT)
