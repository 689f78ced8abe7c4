"""torch's zip archives: reading them strictly, and laying them out as torch.save does.

The layout is that of caffe2/serialize/inline_container.cc and miniz in torch's source: records
stored as they are, each payload aligned to 64 bytes by an extra field "FB", flags 0x808, sizes and
CRC in a data descriptor behind the payload. `calculate_storage_offsets` relies on every byte of it.
"""

from __future__ import annotations

import io
import reprlib
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ptools.checkpoint.data.content import Content, Deflated, FileRange, read_at
from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.files import human_bytes

ALIGNMENT = 64
_FOUR_GIB = 0xFFFFFFFF
_UTF8, _DESCRIPTOR = 0x0800, 0x0008  # flags: the name's encoding; sizes follow the payload
_ENCRYPTED = 0x2041  # flags: in one of three ways
_LONGEST_NAME = 1000
_MOST_DEFLATED = 1100  # times; deflate itself reaches 1032
_LOCAL = struct.Struct("<IHHHHHIIIHH")
_ENTRY = struct.Struct("<IHHHHHHIIIHHHHHII")


def read_archive(path: Path, start: int = 0, nbytes: int | None = None) -> dict[str, Content]:
    """The records of an archive by name, without the folder they are all in.

    `start` and `nbytes` tell where in the file the archive lies, if not all of it.

    Raises:
        CorruptCheckpoint: it is cut short, or two programs could read different things from it.
    """
    size = path.stat().st_size if nbytes is None else nbytes
    try:
        with path.open("rb") as file:
            entries = zipfile.ZipFile(_Window(file, start, size)).infolist()
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OSError) as error:
        raise CorruptCheckpoint(f"{path} is no sound zip archive: {error}") from error
    _check(path, entries, size)
    records: dict[str, Content] = {}
    for entry in entries:
        if not 0 <= entry.header_offset < size:
            raise CorruptCheckpoint(f"{path}: {entry.filename} lies outside the archive")
        header = read_at(path, start + entry.header_offset, _LOCAL.size)
        signature, *_, name_length, extra_length = _LOCAL.unpack(header)
        if signature != 0x04034B50:
            raise CorruptCheckpoint(f"{path}: {entry.filename} is not where the archive says")
        at = start + entry.header_offset + _LOCAL.size + name_length + extra_length
        name = entry.filename.partition("/")[2]
        if at + entry.compress_size > start + size:
            missing = at + entry.compress_size - start - size
            raise CorruptCheckpoint(f"{path}: {name} lacks its last {missing} bytes")
        if entry.compress_type == zipfile.ZIP_STORED:
            records[name] = FileRange(path, at, entry.file_size, entry.CRC)
        else:
            records[name] = Deflated(path, at, entry.compress_size, entry.file_size, entry.CRC)
    return records


def _check(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse what torch and others could read differently, and what is larger than it can be."""
    names = [entry.orig_filename for entry in entries]
    for name, count in Counter(name.lower() for name in names).items():
        if count > 1:  # torch does not tell capitals apart
            raise CorruptCheckpoint(f"{path} has two records called {name!r}")
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise CorruptCheckpoint(f"{path} has a record with the odd name {reprlib.repr(name)}")
    folders = {name.partition("/")[0] for name in names}
    if len(folders) > 1:
        shown = ", ".join(sorted(folders)[:2])
        raise CorruptCheckpoint(f"{path} has {len(folders)} top folders instead of one: {shown}")
    for entry in entries:
        if entry.flag_bits & _ENCRYPTED:
            raise CorruptCheckpoint(f"{path}: {entry.filename} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CorruptCheckpoint(f"{path}: {entry.filename} is compressed in an unusual way")
        if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
            raise CorruptCheckpoint(f"{path}: {entry.filename} has two sizes")
        if not 0 <= entry.header_offset <= size - _LOCAL.size:
            raise CorruptCheckpoint(f"{path}: {entry.filename} is not where the archive says")
        if entry.file_size > max(entry.compress_size, 1) * _MOST_DEFLATED:
            raise CorruptCheckpoint(f"{path}: {entry.filename} cannot be as large as it says")
    if sum(entry.compress_size for entry in entries) > size:
        raise CorruptCheckpoint(f"{path}: its records overlap")


def whole(content: Content, most: int) -> bytes:
    """All bytes of a small record.

    Raises:
        CorruptCheckpoint: it is larger than `most`, or its CRC is wrong.
    """
    if content.nbytes > most:
        raise CorruptCheckpoint(f"a record of {human_bytes(content.nbytes)} should be small")
    data = b"".join(piece.read() for piece in content.pieces())
    if content.crc is not None and zlib.crc32(data) != content.crc:
        raise CorruptCheckpoint("a record is damaged: its checksum is wrong")
    return data


@dataclass(frozen=True, slots=True)
class Record:
    """A record to write: its content, and where its header and its payload start."""

    name: bytes
    content: Content
    header_at: int
    payload_at: int

    @property
    def zip64(self) -> bool:
        return self.content.nbytes >= _FOUR_GIB or self.header_at >= _FOUR_GIB

    @property
    def end(self) -> int:
        """Past the data descriptor."""
        return self.payload_at + self.content.nbytes + len(self.descriptor(0))

    def header(self) -> bytes:
        """The local header, padded up to the payload."""
        known = _LOCAL.size + len(self.name) + len(self._large()) + 4
        padding = self.payload_at - self.header_at - known
        extra = self._large() + b"FB" + struct.pack("<H", padding) + b"Z" * padding
        name_and_extra = len(self.name), len(extra)
        fields = 0x04034B50, 0, self._flags, 0, 0, 0, 0, 0, 0, *name_and_extra
        return _LOCAL.pack(*fields) + self.name + extra

    def descriptor(self, crc: int) -> bytes:
        """CRC and sizes, which follow the payload unless it is empty."""
        if not self.content.nbytes:
            return b""
        sizes = self.content.nbytes, self.content.nbytes
        return struct.pack("<IIQQ" if self.zip64 else "<IIII", 0x08074B50, crc, *sizes)

    def entry(self, crc: int) -> bytes:
        """The record in the central directory."""
        extra = self._large()
        size = min(self.content.nbytes, _FOUR_GIB)
        rest = len(self.name), len(extra), 0, 0, 0, 0, min(self.header_at, _FOUR_GIB)
        fields = 0x02014B50, 0, 0, self._flags, 0, 0, 0, crc, size, size, *rest
        return _ENTRY.pack(*fields) + self.name + extra

    @property
    def _flags(self) -> int:
        return _UTF8 | _DESCRIPTOR if self.content.nbytes else _UTF8

    def _large(self) -> bytes:
        return _zip64(self.content.nbytes, self.header_at)


def lay_out(folder: str, contents: Iterable[tuple[str, Content]], start: int = 0) -> list[Record]:
    """Give each record its place, the first one at `start`."""
    records: list[Record] = []
    at = start
    for name, content in contents:
        full = f"{folder}/{name}".encode()
        known = at + _LOCAL.size + len(full) + len(_zip64(content.nbytes, at)) + 4
        records.append(Record(full, content, at, known + -known % ALIGNMENT))
        at = records[-1].end
    return records


def directory(entries: list[bytes], start: int) -> bytes:
    """The central directory at `start`, from the records' entries, and the end of the archive."""
    body = b"".join(entries)
    count, size, end = len(entries), len(body), start + len(body)
    large = struct.pack(
        "<IQHHIIQQQQ", 0x06064B50, 44, 0x031E, 45, 0, 0, count, count, size, start
    ) + struct.pack("<IIQI", 0x07064B50, 0, end, 1)
    few, offset = min(count, 0xFFFF), min(start, _FOUR_GIB)
    small = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, few, few, min(size, _FOUR_GIB), offset, 0)
    return body + large + small


def _zip64(nbytes: int, header_at: int) -> bytes:
    """The extra field of sizes and offsets that 32 bits do not hold."""
    sizes = (nbytes, nbytes) if nbytes >= _FOUR_GIB else ()
    offset = (header_at,) if header_at >= _FOUR_GIB else ()
    values = (*sizes, *offset)
    return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""


class _Window(io.RawIOBase):
    """The part of a file in which an archive lies, as a file of its own."""

    def __init__(self, file: IO[bytes], start: int, nbytes: int) -> None:
        self._file, self._start, self._nbytes, self._at = file, start, nbytes, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self._nbytes)[whence]
        if at < 0:
            raise OSError("seek before the start")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._nbytes - self._at)
        self._file.seek(self._start + self._at)
        data = self._file.read(left if count < 0 else min(count, left))
        self._at += len(data)
        return data


def directory_entries(path: Path) -> dict[bytes, bytes]:
    """The entries of an archive's central directory as they are, by the records' full names."""
    with path.open("rb") as file:
        file.seek(zipfile.ZipFile(file).start_dir)
        entries = {}
        while (fixed := file.read(_ENTRY.size)).startswith(b"PK\x01\x02"):
            name_length, extra_length, comment_length = _ENTRY.unpack(fixed)[10:13]
            name = file.read(name_length)
            entries[name] = fixed + name + file.read(extra_length + comment_length)
    return entries
