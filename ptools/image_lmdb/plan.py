"""What is to be packed, decided once: every file with its label and size, and its shard.

A plan is a file, so that memory does not grow with the images and other processes and machines
can pack parts of it: blocks of files that are read and written together, then a JSON trailer, then
the trailer's length. A block is its number of files and the length of their paths, then sizes,
times and labels, each in one piece, and the paths with a NUL between them.
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

_BLOCK = struct.Struct("<II")  # files, length of the paths
_FIXED_BYTES = 8 + 8 + 4  # of a file in a block: size, mtime_ns, label
_BLOCK_FILES, _BLOCK_BYTES = 256, 512 << 10  # the most of a block; a larger file is one alone
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

    start: int  # of its first block in the plan file
    blocks: int
    images: int
    bytes: int  # of the files
    file_bytes: int  # that the shard takes at most
    digest: str  # of its blocks, the classes and the options: same digest, same shard


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

    def blocks(self, index: int, first: int = 0, step: int = 1) -> Iterator[list[Entry]]:
        """Every `step`-th block of a shard from the `first`, read as they are needed."""
        part = self.parts[index]
        with self.file.open("rb") as file:
            file.seek(part.start)
            for number in range(part.blocks):
                count, length = _BLOCK.unpack(file.read(_BLOCK.size))
                if number % step != first:
                    file.seek(_FIXED_BYTES * count + length, os.SEEK_CUR)
                    continue
                sizes = struct.unpack(f"<{count}Q", file.read(8 * count))
                times = struct.unpack(f"<{count}q", file.read(8 * count))
                labels = struct.unpack(f"<{count}I", file.read(4 * count))
                paths = file.read(length).decode("utf-8", "surrogateescape").split("\0")
                yield list(map(Entry, paths, labels, sizes, times))

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
    """
    classes = tuple(classes)
    salt = json.dumps([classes, asdict(options)]).encode()
    with file.open("wb") as stream:
        parts = tuple(_write_parts(stream, classes, entries, salt, shard_size))
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


def _write_parts(
    stream: BinaryIO, classes: tuple[str, ...], entries: Iterable[Entry], salt: bytes, limit: int
) -> Iterator[Part]:
    current = _OpenPart(stream, classes, salt)
    for entry in entries:
        if current.is_full(limit, entry.size):
            yield current.closed()
            current = _OpenPart(stream, classes, salt)
        current.add(entry)
    yield current.closed()


class _OpenPart:
    """A part that files are added to."""

    def __init__(self, stream: BinaryIO, classes: tuple[str, ...], salt: bytes) -> None:
        self._stream, self._start = stream, stream.tell()
        self._blocks = self._images = self._bytes = 0
        self._size = SizeCount(sum(map(len, classes)) + 3 * len(classes))
        self._digest = hashlib.sha256(salt)
        self._block: list[Entry] = []
        self._block_bytes = 0

    def is_full(self, limit: int, size: int) -> bool:
        if self._size.bytes + size > limit > 0:
            return self._images > 0 or bool(self._block)
        return self._images + len(self._block) == _MOST_IMAGES

    def add(self, entry: Entry) -> None:
        path, _, size, _ = entry
        if len(self._block) == _BLOCK_FILES or self._block_bytes + size > _BLOCK_BYTES:
            self._write_block()
        self._block.append(entry)
        self._block_bytes += size
        length = len(path) if path.isascii() else len(path.encode("utf-8", "surrogateescape"))
        self._size.add(size, length)

    def closed(self) -> Part:
        self._write_block()
        digest = self._digest.hexdigest()[:32]
        size = self._size.bytes
        return Part(self._start, self._blocks, self._images, self._bytes, size, digest)

    def _write_block(self) -> None:
        if not self._block:
            return
        paths, labels, sizes, times = zip(*self._block, strict=True)
        names = "\0".join(paths).encode("utf-8", "surrogateescape")
        count = len(paths)
        data = b"".join(
            (
                _BLOCK.pack(count, len(names)),
                struct.pack(f"<{count}Q{count}q{count}I", *sizes, *times, *labels),
                names,
            )
        )
        self._digest.update(data)
        self._stream.write(data)
        self._blocks += 1
        self._images += count
        self._bytes += self._block_bytes
        self._block, self._block_bytes = [], 0
