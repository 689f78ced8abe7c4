"""Write one shard: batches of images in order, then the metadata record and the tree above."""

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from ptools.image_lmdb.batch import Batch
from ptools.image_lmdb.btree import (
    FIRST_PAGE,
    TRANSACTION,
    Child,
    Leaf,
    branches,
    meta_pages,
    node,
    overflow_header,
    reference,
)
from ptools.image_lmdb.errors import DamagedDatabase
from ptools.image_lmdb.pages import HEADER
from ptools.image_lmdb.record import (
    KEY,
    ROW_BYTES,
    STAMP_AT,
    Stamp,
    pack_record,
    pack_row,
    pack_stamp,
    unpack_row,
)
from ptools.image_lmdb.sizes import KEY_BYTES, NODE_BYTES, PAGE_BYTES, pages_for

_READ_BACK = 100  # one image in so many, and the last
_PIECE = 64 << 10  # bytes: for larger writes the system looks for larger pieces of free memory
_STATE = struct.Struct("<8Q")


@dataclass
class End:
    """How far a shard has grown: all that must be known to place the next images."""

    page: int = FIRST_PAGE  # the next that is free
    leaves: int = 0
    images: int = 0
    image_bytes: int = 0
    paths_length: int = 0
    files: int = 0  # of the source, that are done
    file_bytes: int = 0
    leaf: Leaf | None = None

    def pack(self) -> bytes:
        """As bytes, for another process."""
        state = _STATE.pack(
            self.page,
            self.leaves,
            self.images,
            self.image_bytes,
            self.paths_length,
            self.files,
            self.file_bytes,
            self.leaf.number if self.leaf else 0,
        )
        return state + (self.leaf.page() if self.leaf else b"")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        *numbers, leaf = _STATE.unpack_from(data)
        end = cls(*numbers)
        end.leaf = Leaf(leaf, data[_STATE.size :]) if leaf else None
        return end


class Place(NamedTuple):
    """Where a batch lies in the file."""

    start: int  # of its pages, in bytes
    offsets: list[int]  # of the images
    paths_at: int
    full: list[Leaf]  # leaves that are complete now
    opened: list[Child]  # leaves that begin with an image of this batch


def place(batch: Batch, end: End) -> Place:
    """Give a batch its place, and move the end behind it."""
    first = end.page
    found = Place(first * PAGE_BYTES, [], end.paths_length, [], [])
    end.page += len(batch.pages) // PAGE_BYTES
    for value in batch.values:
        key = end.images.to_bytes(KEY_BYTES, "big")
        if value.at < 0:
            at = _insert(end, key, node(key, value.small), found) + NODE_BYTES + KEY_BYTES
        else:
            _insert(end, key, reference(key, value.length, first + value.at // PAGE_BYTES), found)
            at = found.start + value.at + HEADER
        found.offsets.append(at)
        end.images += 1
        end.image_bytes += value.length
        end.paths_length += len(value.path)
    end.files += batch.tally.files
    end.file_bytes += batch.tally.file_bytes
    return found


def _insert(end: End, key: bytes, one: bytes, found: Place) -> int:
    """Put a node into the last leaf, or a new one; returns where it lies in the file."""
    at = end.leaf.add(one) if end.leaf else None
    if at is None:
        if end.leaf:
            found.full.append(end.leaf)
        end.leaf = Leaf(end.page)
        found.opened.append(Child(key, end.page))
        end.page += 1
        end.leaves += 1
        at = end.leaf.add(one)
        assert at is not None
    return at


@dataclass
class Rows:
    """What the metadata record and the tree hold of some images."""

    rows: bytearray = field(default_factory=bytearray)
    paths: bytearray = field(default_factory=bytearray)
    leaves: list[Child] = field(default_factory=list)

    def add(self, more: "Rows") -> None:
        """Append those of the next images."""
        self.rows += more.rows
        self.paths += more.paths
        self.leaves += more.leaves


def write_batch(descriptor: int, batch: Batch, at: Place) -> Rows:
    """Write a batch to its place, and the leaves that are full."""
    pages, first = batch.pages, at.start // PAGE_BYTES
    rows, paths_at = Rows(leaves=at.opened), at.paths_at
    for value, offset in zip(batch.values, at.offsets, strict=True):
        if value.at >= 0:
            header = overflow_header(first + value.at // PAGE_BYTES, value.length)
            pages[value.at : value.at + HEADER] = header
        length = len(value.path)
        rows.rows += pack_row(offset, value.length, value.label, value.crc32, paths_at, length)
        rows.paths += value.path
        paths_at += length
    write_at(descriptor, pages, at.start)
    for leaf in at.full:
        write_at(descriptor, leaf.page(), leaf.number * PAGE_BYTES)
    return rows


def write_at(descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of it; the system may take a part at a time."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view[:_PIECE], offset)
        view, offset = view[count:], offset + count


def finish(file: Path, descriptor: int, end: End, rows: Rows, classes: Sequence[str]) -> int:
    """Write the metadata record and what leads to the values; returns the file's size in bytes.

    Raises:
        DamagedDatabase: an image is not in the file as it was read.
    """
    header = {
        "classes": classes,
        "images": end.images,
        "bytes": end.image_bytes,
        "paths_crc32": zlib.crc32(rows.paths),
    }
    record = pack_record(header, rows.rows, rows.paths)
    at = Place(end.page * PAGE_BYTES, [], 0, [], [])
    end.page += pages_for(len(record))
    _insert(end, KEY, reference(KEY, len(record), at.start // PAGE_BYTES), at)
    above = branches([*rows.leaves, *at.opened], end.page)
    end.page += above.pages
    stamp = pack_stamp(Stamp(end.page - 1, above.root, TRANSACTION))
    record[STAMP_AT : STAMP_AT + len(stamp)] = stamp
    own_pages = end.page - FIRST_PAGE - end.leaves - above.pages
    write_at(descriptor, overflow_header(at.start // PAGE_BYTES, len(record)), at.start)
    write_at(descriptor, record, at.start + HEADER)
    assert end.leaf is not None
    for leaf in (*at.full, end.leaf):
        write_at(descriptor, leaf.page(), leaf.number * PAGE_BYTES)
    write_at(descriptor, above.data, (end.page - above.pages) * PAGE_BYTES)
    write_at(descriptor, meta_pages(end.leaves, own_pages, above, end.images + 1), 0)
    os.ftruncate(descriptor, end.page * PAGE_BYTES)  # the last page may be the record's
    _read_back(file, descriptor, rows.rows)
    return end.page * PAGE_BYTES


def _read_back(file: Path, descriptor: int, rows: bytearray) -> None:
    images = len(rows) // ROW_BYTES
    for index in {*range(0, images, _READ_BACK), images - 1} - {-1}:
        row = unpack_row(rows[index * ROW_BYTES : (index + 1) * ROW_BYTES])
        assert row is not None
        if zlib.crc32(os.pread(descriptor, row.length, row.offset)) != row.crc32:
            message = f"{file} does not hold what was written to it"
            raise DamagedDatabase(message, "check the disk and its memory")
