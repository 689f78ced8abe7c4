"""The metadata record: the last value of every shard, which makes it complete by itself.

Its key is `ff 6d 65 74 61`. Integers are little-endian:

    prefix   64 bytes: "ptoolsIM", version u32, CRC-32 of the header u32, length of the header u64,
             images u64, length of the paths u64, and the stamp: the last page, the root and the
             transaction (u64 each) of the file for which the rows' offsets hold
    header   JSON in ASCII, padded with spaces to 8 bytes: format, version, classes, images, bytes,
             row (the fields of a row), paths_crc32
    rows     32 bytes an image: offset u64 (in the file), length u32, label u32, crc32 u32,
             path_at u32 (in the paths), path_length u16, zero u16, CRC-32 of these 28 bytes u32
    paths    the relative paths, as the file system has them, one after the other
"""

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ptools.image_lmdb.errors import DamagedDatabase, NotADatabase

KEY = b"\xffmeta"
FORMAT = "ptools-images"
VERSION = 1
MAGIC = b"ptoolsIM"
ROW_BYTES = 32
PREFIX_BYTES = 64
STAMP_AT = PREFIX_BYTES - 24
_PREFIX = struct.Struct("<8sIIQQQQQQ")
_ROW = struct.Struct("<QIIIIH2x")
_CRC32 = struct.Struct("<I")
_FIELDS = (
    "offset:u64 length:u32 label:u32 crc32:u32 path_at:u32 path_length:u16 zero:u16 row_crc32:u32"
)


class Row(NamedTuple):
    """One image: where its bytes lie, what they are, and where its path is."""

    offset: int
    length: int
    label: int
    crc32: int
    path_at: int
    path_length: int


class Stamp(NamedTuple):
    """The state of a file for which the offsets in its rows hold."""

    last_page: int
    root: int
    transaction: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a record lie, counted from its start."""

    version: int
    header_crc32: int
    header_length: int
    images: int
    paths_length: int
    stamp: Stamp

    @property
    def rows_at(self) -> int:
        return PREFIX_BYTES + self.header_length

    @property
    def paths_at(self) -> int:
        return self.rows_at + ROW_BYTES * self.images

    @property
    def end(self) -> int:
        return self.paths_at + self.paths_length


def pack_row(
    offset: int, length: int, label: int, crc32: int, path_at: int, path_length: int
) -> bytes:
    """A row with its checksum."""
    row = _ROW.pack(offset, length, label, crc32, path_at, path_length)
    return row + _CRC32.pack(zlib.crc32(row))


def unpack_row(data: bytes | bytearray | memoryview) -> Row | None:
    """The row in these 32 bytes, or None if they are damaged."""
    if len(data) != ROW_BYTES or zlib.crc32(data[:28]) != int.from_bytes(data[28:], "little"):
        return None
    return Row._make(_ROW.unpack_from(data))


def pack_record(
    header: dict[str, Any], rows: bytes | bytearray, paths: bytes | bytearray
) -> bytearray:
    """The whole record; its stamp is zero until `pack_stamp` says for which file it holds."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **header, "row": _FIELDS}).encode()
    text += b" " * (-len(text) % 8)
    images = len(rows) // ROW_BYTES
    prefix = _PREFIX.pack(
        MAGIC, VERSION, zlib.crc32(text), len(text), images, len(paths), *Stamp(0, 0, 0)
    )
    return bytearray().join((prefix, text, rows, paths))


def pack_stamp(stamp: Stamp) -> bytes:
    """What to write at STAMP_AT, once it is known."""
    return struct.pack("<QQQ", *stamp)


def unpack_prefix(data: bytes, name: str) -> Layout:
    """Read the first 64 bytes of a record.

    Raises:
        NotADatabase: it is not ours, or was written by a newer version.
    """
    if len(data) < PREFIX_BYTES or not data.startswith(MAGIC):
        raise NotADatabase(f"{name} has no metadata record of ptools")
    _, version, crc32, header_length, images, paths_length, *stamp = _PREFIX.unpack_from(data)
    if version > VERSION:
        raise newer(name, version)
    return Layout(version, crc32, header_length, images, paths_length, Stamp(*stamp))


def newer(name: str, version: object) -> NotADatabase:
    return NotADatabase(
        f"{name} was written in version {version} of the format; this ptools reads {VERSION}",
        hint="pip install --upgrade ptools",
    )


def unpack_header(data: bytes, layout: Layout, name: str) -> dict[str, Any]:
    """Read the JSON header.

    Raises:
        DamagedDatabase: it is not what was written.
    """
    if zlib.crc32(data) != layout.header_crc32:
        raise DamagedDatabase(f"{name}: the metadata record is damaged", "copy it or pack it again")
    header: dict[str, Any] = json.loads(data)
    return header


def classes_of(header: dict[str, Any]) -> Sequence[str]:
    """The class names in a header whose checksum was right."""
    return tuple(str(name) for name in header["classes"])
