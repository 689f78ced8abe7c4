"""A packed set, opened to read: images by their index, over all its shards."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import index as integer
from pathlib import Path
from typing import NamedTuple, Protocol

from ptools.image_lmdb.errors import DamagedDatabase, NotADatabase
from ptools.image_lmdb.metadata import ShardEntry, read_metadata
from ptools.image_lmdb.record import Row
from ptools.image_lmdb.shard import Shard


class Stored(NamedTuple):
    """The bytes of an image file, and its class number."""

    data: bytes
    label: int


class Images(Protocol):
    """Image files with labels, by index: a set of ours, or a foreign database."""

    path: Path
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def fetch(self, indices: Sequence[int]) -> list[Stored]:
        """Read images, all at once where the system can.

        Raises:
            DamagedDatabase: the bytes are not what was packed.
        """
        ...

    def path_of(self, index: int) -> str:
        """The path of an image within its folder."""
        ...

    def label_of(self, index: int) -> int:
        """The class number of an image."""
        ...

    def paths(self) -> Iterator[str]:
        """All paths, in order."""
        ...

    def labels(self) -> "array[int]":
        """All class numbers, in order."""
        ...


def open_images(path: str | Path) -> Images:
    """Open a set, one shard of it, or a foreign database of a layout that is known.

    Raises:
        NotADatabase: there is none that can be read.
        DamagedDatabase: a file is missing, cut short, or its metadata is damaged.
    """
    if "://" in str(path):
        raise NotADatabase(
            f"{path} is not on a disk", hint="copy it to one: sets are read from files"
        )
    path = Path(path)
    try:
        return Database(path)
    except NotADatabase as ours:
        from ptools.image_lmdb.foreign import open_foreign

        if (images := open_foreign(path)) is None:
            raise ours
        return images


class Database:
    """A set that `pack_lmdb` wrote: its folder, or one of its files alone.

    Shards are opened when they are first read. It may be pickled, forked, shared by threads, and
    opened any number of times.

    Raises:
        NotADatabase: it is none, is not finished, or was written by a newer version.
        DamagedDatabase: a file is missing or cut short, or its metadata is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._opened: dict[int, Shard] = {}
        self._numbers: dict[int, Sequence[int]] = {}  # of its classes, by shard
        if self.path.is_dir() or self._is_unfinished():
            metadata = read_metadata(self.path)
            self.classes = metadata.classes
            self.shards: tuple[ShardEntry, ...] = metadata.shards
            self._folder = self.path
            self._check_files()
        elif self.path.exists():
            shard = self._opened[0] = Shard(self.path)
            self.classes = shard.classes
            self._numbers[0] = range(len(self.classes))
            self.shards = (ShardEntry(self.path.name, len(shard), self.path.stat().st_size),)
            self._folder = self.path.parent
        else:
            raise NotADatabase(f"there is no {self.path}")
        self._ends = list(accumulate(entry.images for entry in self.shards))
        self._images = self._ends[-1] if self._ends else 0

    def __reduce__(self) -> tuple[type["Database"], tuple[Path]]:
        return Database, (self.path,)

    def __len__(self) -> int:
        return self._images

    def _is_unfinished(self) -> bool:
        part = self.path.with_name(self.path.name + ".part")
        return part.is_dir() and not self.path.exists()

    def _check_files(self) -> None:
        for entry in self.shards:
            file = self._folder / entry.file
            size = file.stat().st_size if file.is_file() else None
            if size != entry.bytes:
                found = "is missing" if size is None else f"has {size:,} of {entry.bytes:,} bytes"
                raise DamagedDatabase(f"{file} {found}", "copy it again, or pack the set again")

    def shard(self, number: int) -> Shard:
        """One of the files, opened."""
        if number not in self._opened:
            entry = self.shards[number]
            shard = Shard(self._folder / entry.file, first=self._ends[number] - entry.images)
            if len(shard) != entry.images:
                raise DamagedDatabase(
                    f"{shard.path} holds {len(shard):,} images, not {entry.images:,}",
                    "it is of another set: copy it again, or pack the set again",
                )
            self._numbers[number] = self._numbers_of(shard)
            self._opened[number] = shard
        return self._opened[number]

    def _numbers_of(self, shard: Shard) -> Sequence[int]:
        """The number that each class of a shard has in the set: merged sets share their shards."""
        if shard.classes == self.classes:
            return range(len(self.classes))
        numbers = {name: number for number, name in enumerate(self.classes)}
        try:
            return [numbers[name] for name in shard.classes]
        except KeyError as error:
            raise DamagedDatabase(
                f"{shard.path} has a class {error} that the set has not",
                "it is of another set: copy it again, or pack the set again",
            ) from error

    def locate(self, index: int) -> tuple[int, int]:
        """The shard that holds an image, and its place there.

        Raises:
            IndexError: there is no such image.
        """
        index = integer(index)  # of NumPy and torch too
        if not -self._images <= index < self._images:
            raise IndexError(f"{self.path} has {self._images:,} images, not one of index {index}")
        index %= self._images
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def fetch(self, indices: Sequence[int]) -> list[Stored]:
        wanted: list[tuple[int, Row, int, int]] = []
        for place, index in enumerate(indices):
            number, at = self.locate(index)
            wanted.append((number, self.shard(number).row(at), place, at))
        if len(wanted) > 1:
            wanted.sort()  # as they lie in the files
            for number, row, *_ in wanted:
                self._opened[number].advise(row)
        found: dict[int, Stored] = {}
        for number, row, place, at in wanted:
            found[place] = Stored(self._opened[number].read(row, at), self._label(number, row))
        return [found[place] for place in range(len(wanted))]

    def path_of(self, index: int) -> str:
        number, at = self.locate(index)
        shard = self.shard(number)
        return shard.path_of(shard.row(at))

    def label_of(self, index: int) -> int:
        number, at = self.locate(index)
        return self._label(number, self.shard(number).row(at))

    def paths(self) -> Iterator[str]:
        for number in range(len(self.shards)):
            yield from self.shard(number).paths()

    def labels(self) -> "array[int]":
        return array(
            "I",
            (
                self._label(number, row)
                for number in range(len(self.shards))
                for row in self.shard(number).rows()
            ),
        )

    def _label(self, number: int, row: Row) -> int:
        try:
            return self._numbers[number][row.label]
        except IndexError:
            message = f"{self.shard(number).path} has labels beyond its classes"
            raise DamagedDatabase(message, "copy it again, or pack the set again") from None
