"""Join sets into one: their files are copied as they are, and their classes meet by name."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from ptools.errors import PtoolsError, UsageError
from ptools.files import free_space, human_bytes
from ptools.image_lmdb.database import Database
from ptools.image_lmdb.errors import DamagedDatabase
from ptools.image_lmdb.local import LocalStore
from ptools.image_lmdb.metadata import (
    Metadata,
    ShardEntry,
    read_skipped,
    write_metadata,
    write_skipped,
)
from ptools.image_lmdb.pathset import PathSet
from ptools.image_lmdb.progress import Listener, Meter
from ptools.image_lmdb.store import Store, locked, shard_name

_PIECE = 16 << 20  # bytes


@dataclass(frozen=True)
class MergeReport:
    """A joined set."""

    paths: tuple[Path, ...]
    output: str
    classes: int
    images: int
    bytes: int  # of the images
    file_bytes: int
    shards: int
    duplicates: int  # images whose path another image has, too
    skipped: int  # files that the sets list as left out
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON: sizes in bytes, time in seconds."""
        return {**asdict(self), "paths": [str(path) for path in self.paths]}


def merge(
    paths: Sequence[str | Path],
    output: str | Path,
    force: bool = False,
    progress: Listener | None = None,
) -> MergeReport:
    """Join sets: the classes are those of all of them, sorted; the images of each keep their order.

    The new set gets its name when it is complete and on the disk.

    Raises:
        UsageError: the output exists, or is one of the sets.
        NotADatabase: one of them is no set, or not finished.
        DamagedDatabase: a file is missing, cut short, or its metadata is damaged.
        PtoolsError: the disk is full.

        merge(["cats.lmdb", "dogs.lmdb"], "animals.lmdb")
    """
    started = time.monotonic()
    if not paths:
        raise UsageError("there is nothing to merge", "name the sets")
    sets = [Database(path) for path in paths]
    store = LocalStore(Path(output))
    _check_output(store, sets, force)
    duplicates, nbytes = _look_through(sets)
    file_bytes = sum(entry.bytes for one in sets for entry in one.shards)
    with locked(store):
        _check_output(store, sets, force)  # another run may have finished meanwhile
        try:
            for name in store.names() - {"set"}:  # of a run that was interrupted
                store.remove(name)
            _check_space(store, file_bytes)
            shards = _copy_shards(sets, store, Meter(progress, "merging", None, file_bytes))
            skipped = [bad for one in sets for bad in read_skipped(one.path)]
            write_skipped(store, skipped)
            classes = sorted({name for one in sets for name in one.classes})
            images = sum(map(len, sets))
            write_metadata(store, Metadata(tuple(classes), images, nbytes, shards))
            store.commit()
        except OSError as error:
            raise PtoolsError(
                f"cannot write {store.output}: {error.strerror}",
                hint=f"{human_bytes(file_bytes)} are needed there, or elsewhere with -o",
            ) from error
    return MergeReport(
        paths=tuple(one.path for one in sets),
        output=store.output,
        classes=len(classes),
        images=images,
        bytes=nbytes,
        file_bytes=file_bytes,
        shards=len(shards),
        duplicates=duplicates,
        skipped=len(skipped),
        seconds=time.monotonic() - started,
    )


def _check_output(store: LocalStore, sets: Sequence[Database], force: bool) -> None:
    output = Path(store.output).resolve()
    for one in sets:
        if output in (one.path.resolve(), *one.path.resolve().parents):
            hint = "give another name with -o"
            raise UsageError(f"{store.output} is one of the sets to merge", hint)
    if not store.exists():
        return
    if not force:
        raise UsageError(f"{store.output} already exists", "pass --force to replace it")
    store.check_replaceable()


def _look_through(sets: Sequence[Database]) -> tuple[int, int]:
    """Open every file; how many images share their path, and the bytes of all."""
    met = PathSet()
    duplicates = sum(not met.add(path) for one in sets for path in one.paths())
    shards = (one.shard(number) for one in sets for number in range(len(one.shards)))
    return duplicates, sum(int(shard.header["bytes"]) for shard in shards)


def _check_space(store: Store, needed: int) -> None:
    free = free_space(store.workspace)
    if needed > free:
        raise PtoolsError(
            f"{store.output} needs {human_bytes(needed)}, and {human_bytes(free)} are free",
            hint="free some space there, or give another place with -o",
        )


def _copy_shards(sets: Sequence[Database], store: Store, meter: Meter) -> tuple[ShardEntry, ...]:
    files = [
        (one.shard(number).path, entry) for one in sets for number, entry in enumerate(one.shards)
    ]
    entries = []
    for number, (file, entry) in enumerate(files):
        name = shard_name(number, len(files))
        copy = store.workspace / f".{name}.part"
        if (size := _copy(file, copy, meter)) != entry.bytes:
            message = f"{file} has {size:,} of {entry.bytes:,} bytes"
            raise DamagedDatabase(message, "copy it again, or pack the set again")
        store.put(name, copy)
        meter.add(entry.images, 0)
        entries.append(ShardEntry(name, entry.images, size))
    return tuple(entries)


def _copy(file: Path, copy: Path, meter: Meter) -> int:
    """Copy a file and put it on the disk; returns the size of the copy."""
    with file.open("rb", buffering=0) as source, copy.open("wb") as target:
        for count in _copied(source, target):
            meter.add(0, count)
        target.flush()
        os.fsync(target.fileno())
        return os.fstat(target.fileno()).st_size


def _copied(source: FileIO, target: BinaryIO) -> Iterator[int]:
    """Copy in pieces, by the system where it can: some share the blocks and copy nothing."""
    with suppress(OSError, AttributeError):  # not here, or not between these two file systems
        while count := os.copy_file_range(source.fileno(), target.fileno(), _PIECE):
            yield count
    while piece := source.read(_PIECE):
        target.write(piece)
        yield len(piece)
