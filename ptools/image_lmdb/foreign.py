"""Databases that other tools wrote, read without liblmdb and without running what they hold.

They have no checksums: a file that is cut short raises an error, but bytes that changed in place
cannot be noticed.
"""

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

from ptools.image_lmdb.database import Images, Stored
from ptools.image_lmdb.errors import DamagedDatabase
from ptools.image_lmdb.layouts import Layout, recognise
from ptools.image_lmdb.pages import Value, open_tree


def open_foreign(path: Path) -> Images | None:
    """Open a database of another tool: a file, or a folder with a data.mdb.

    The layouts are those of `layouts`. None if it has none of these, or if it is an unfinished or
    damaged set of ours.

    Raises:
        NotADatabase: it is no LMDB file, or what it holds cannot be read safely.
        DamagedDatabase: it is cut short, or its pages are damaged.
    """
    file = path / "data.mdb" if path.is_dir() else path
    packing = any(name.endswith(".part") for name in path.absolute().parts[-3:])
    if packing or not file.is_file():
        return None
    place = file.absolute()
    name = (place.parent if place.name == "data.mdb" else place).stem
    with ExitStack() as stack:
        opened = stack.enter_context(file.open("rb", buffering=0))
        layout = recognise(open_tree(opened.fileno(), str(file)), name)
        if layout is None:
            return None
        stack.pop_all()
        return ForeignImages(path, opened, layout)


class ForeignImages:
    """The images of another tool's database, in the order of their keys; see `Images`.

    Like a `Database` it may be pickled, forked, shared by threads, and opened any number of times.
    `kind` says in a few words what it is.
    """

    def __init__(self, path: Path, file: FileIO, layout: Layout) -> None:
        self.path = path
        self.kind = layout.kind
        self.classes = layout.classes
        self._file = file
        self._index = layout.index
        self._labels = layout.labels
        self._unwrap = layout.unwrap

    def __reduce__(self) -> tuple[Callable[[Path], Images | None], tuple[Path]]:
        return open_foreign, (self.path,)

    def __len__(self) -> int:
        return len(self._index)

    def fetch(self, indices: Sequence[int]) -> list[Stored]:
        places = [self._place(index) for index in indices]
        found = [self._index[place] for place in places]
        if len(found) > 1 and hasattr(os, "posix_fadvise"):
            for value in sorted(found, key=lambda value: value.offset):
                os.posix_fadvise(
                    self._file.fileno(), value.offset, value.length, os.POSIX_FADV_WILLNEED
                )
        return [
            Stored(self._read(value), self._labels[place])
            for place, value in zip(places, found, strict=True)
        ]

    def path_of(self, index: int) -> str:
        return os.fsdecode(self._index[self._place(index)].key)

    def label_of(self, index: int) -> int:
        return self._labels[self._place(index)]

    def paths(self) -> Iterator[str]:
        return (os.fsdecode(value.key) for value in self._index)

    def labels(self) -> "array[int]":
        return self._labels[:]

    def _place(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self):,} images, not one of index {index}")
        return index % len(self)

    def _read(self, value: Value) -> bytes:
        data = os.pread(self._file.fileno(), value.length, value.offset)
        image = self._unwrap(data) if len(data) == value.length else None
        if image is None:
            raise DamagedDatabase(
                f"{self.path}: {os.fsdecode(value.key)!r} is cut short or overwritten",
                hint="copy the database again",
            )
        return image
