"""What is to be packed, decided once: every file with its label and size, and its shard.

A plan is a file, so that memory does not grow with the images and other processes and machines
can pack parts of it: the rows in order, then a JSON trailer, then the trailer's length.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, get_args

from ptools.errors import PtoolsError, UsageError
from ptools.image_lmdb.check import Check
from ptools.image_lmdb.recode import Recode
from ptools.image_lmdb.scan import Entry
from ptools.image_lmdb.sizes import SizeCount
from ptools.image_lmdb.store import shard_name

OnError = Literal["skip", "fail", "keep"]

_ROW = struct.Struct("<QqIH")  # size, mtime_ns, label, length of the path
_END = struct.Struct("<Q")
_MOST_IMAGES = 1 << 18  # in a shard: bounds the memory that its metadata takes


@dataclass(frozen=True)
class Options:
    """What decides, beside the files, which bytes a shard holds.

    Raises:
        UsageError: there is no such check or policy, or a number is out of its range.
    """

    check: Check = "header"
    on_error: OnError = "skip"
    resize_short: int | None = None
    quality: int | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("check", self.check, get_args(Check)),
            ("on_error", self.on_error, get_args(OnError)),
        ):
            if value not in known:
                raise UsageError(f"there is no {name} {value!r}", f"choose from {', '.join(known)}")
        _ = self.recode

    @property
    def recode(self) -> Recode | None:
        """How images are made anew, if they are."""
        if self.resize_short is None and self.quality is None:
            return None
        return Recode(self.resize_short, self.quality)


@dataclass(frozen=True)
class Part:
    """The images of one shard: a piece of the plan."""

    start: int  # of its first row in the plan file
    images: int
    bytes: int  # of the files
    file_bytes: int  # that the shard takes at most
    digest: str  # of its rows, the classes and the options: same digest, same shard


@dataclass(frozen=True)
class Plan:
    """A plan, without its rows."""

    file: Path
    source: Path
    classes: tuple[str, ...]
    options: Options
    shard_size: int
    parts: tuple[Part, ...]
    unreadable: tuple[tuple[str, str], ...]  # path and reason of what has no place in it

    @property
    def images(self) -> int:
        return sum(part.images for part in self.parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def file_bytes(self) -> int:
        return sum(part.file_bytes for part in self.parts)

    def shard_name(self, index: int) -> str:
        """What the file of part `index` is called."""
        return shard_name(index, len(self.parts))

    def entries(self, index: int) -> Iterator[Entry]:
        """The files of one shard, read from the plan as they are needed."""
        part = self.parts[index]
        with self.file.open("rb") as file:
            file.seek(part.start)
            for _ in range(part.images):
                size, mtime_ns, label, length = _ROW.unpack(file.read(_ROW.size))
                path = file.read(length).decode("utf-8", "surrogateescape")
                yield Entry(path, label, size, mtime_ns)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a plan that `write_plan` wrote.

        Raises:
            PtoolsError: it is cut short, or of another version.
        """
        try:
            document = _trailer(file)
            return cls(
                file,
                Path(document["source"]),
                tuple(document["classes"]),
                Options(**document["options"]),
                document["shard_size"],
                tuple(Part(**part) for part in document["parts"]),
                tuple((path, reason) for path, reason in document["unreadable"]),
            )
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise PtoolsError(
                f"{file} is damaged, or of another version of ptools",
                hint="pack the set as a whole, without --part: that makes a new one",
            ) from error


def _trailer(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        end = max(0, stream.seek(0, os.SEEK_END) - _END.size)
        stream.seek(end)
        (length,) = _END.unpack(stream.read(_END.size))
        if length > end:
            raise ValueError(f"a trailer of {length} bytes")
        stream.seek(end - length)
        document: dict[str, Any] = json.loads(stream.read(length))
    return document


def write_plan(
    file: Path,
    source: Path,
    classes: Iterable[str],
    entries: Iterable[Entry],
    unreadable: list[tuple[str, str]],
    options: Options,
    shard_size: int,
) -> Plan:
    """Write the plan of `entries` to `file`, cut into shards of at most `shard_size` bytes.

    `unreadable` may grow while the entries are taken.

    Raises:
        PtoolsError: a path is longer than can be recorded.
    """
    classes = tuple(classes)
    salt = json.dumps([classes, asdict(options)]).encode()
    with file.open("wb") as stream:
        parts = tuple(_write_rows(stream, classes, entries, salt, shard_size))
        trailer = {
            "source": str(source.absolute()),
            "classes": classes,
            "options": asdict(options),
            "shard_size": shard_size,
            "parts": [asdict(part) for part in parts],
            "unreadable": unreadable,
        }
        text = json.dumps(trailer).encode()
        stream.write(text + _END.pack(len(text)))
    return Plan(file, source, classes, options, shard_size, parts, tuple(unreadable))


def _write_rows(
    stream: BinaryIO, classes: tuple[str, ...], entries: Iterable[Entry], salt: bytes, limit: int
) -> Iterator[Part]:
    current = _OpenPart(0, classes, salt)
    for entry in entries:
        path = entry.path.encode("utf-8", "surrogateescape")
        if len(path) > 0xFFFF:
            raise PtoolsError(f"a path of {len(path):,} bytes is too long: {entry.path[:60]}...")
        row = _ROW.pack(entry.size, entry.mtime_ns, entry.label, len(path)) + path
        if current.images and current.is_full(limit, entry.size):
            yield current.closed()
            current = _OpenPart(stream.tell(), classes, salt)
        current.add(row, entry.size, len(path))
        stream.write(row)
    yield current.closed()


class _OpenPart:
    """A part that rows are added to."""

    def __init__(self, start: int, classes: tuple[str, ...], salt: bytes) -> None:
        self.start, self.images, self.bytes = start, 0, 0
        self._size = SizeCount(sum(map(len, classes)) + 3 * len(classes))
        self._digest = hashlib.sha256(salt)

    def is_full(self, limit: int, size: int) -> bool:
        return self.images == _MOST_IMAGES or self._size.bytes + size > limit > 0

    def add(self, row: bytes, size: int, path_length: int) -> None:
        self.images += 1
        self.bytes += size
        self._size.add(size, path_length)
        self._digest.update(row)

    def closed(self) -> Part:
        digest = self._digest.hexdigest()[:32]
        return Part(self.start, self.images, self.bytes, self._size.bytes, digest)
