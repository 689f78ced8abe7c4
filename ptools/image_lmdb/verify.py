"""Check a set to its last byte, and list all that is wrong with it."""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptools.errors import PtoolsError
from ptools.image_lmdb.metadata import Metadata, ShardEntry, read_metadata, read_skipped
from ptools.image_lmdb.pathset import PathSet
from ptools.image_lmdb.progress import Listener, Meter
from ptools.image_lmdb.scan import Notes, classes_of, scan
from ptools.image_lmdb.shard import Shard
from ptools.image_lmdb.store import META, SKIPPED
from ptools.image_lmdb.verify_shard import Found, Problem, ShardCheck


@dataclass(frozen=True)
class VerifyReport:
    """What was checked, and what is wrong."""

    path: Path
    against: Path | None
    images: int  # that were read
    bytes: int  # of them
    shards: int
    problems: tuple[Problem, ...]  # the first of them
    problem_count: int
    notes: tuple[str, ...]  # what is odd, but harmless
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.problem_count

    def to_dict(self) -> dict[str, Any]:
        """As JSON: sizes in bytes, time in seconds."""
        against = self.against and str(self.against)
        return {**asdict(self), "path": str(self.path), "against": against, "ok": self.ok}


def verify(
    path: str | Path, against: str | Path | None = None, progress: Listener | None = None
) -> VerifyReport:
    """Check files, structure, metadata and the bytes of every image of a set, or of one file of it.

    With `against`, the folder that it was packed from, images are compared with their files too,
    and files that are neither in the set nor in its `skipped.jsonl` are problems.

    Raises:
        NotADatabase: there is no set.
        DamagedDatabase: its `meta.json` cannot be understood.
        UsageError: `against` is no folder of class folders.

        assert verify("imgs.lmdb").ok
    """
    started = time.monotonic()
    path = Path(path)
    source = None if against is None else Path(against)
    metadata = read_metadata(path) if path.is_dir() or not path.exists() else None
    check = _Check(path, metadata, source, progress)
    check.run()
    found = check.found
    return VerifyReport(
        path,
        source,
        check.meter.images,
        check.meter.bytes,
        len(check.entries),
        tuple(found.problems),
        found.count,
        tuple(found.notes),
        time.monotonic() - started,
    )


class _Check:
    """One call of `verify`."""

    def __init__(
        self, path: Path, metadata: Metadata | None, source: Path | None, progress: Listener | None
    ) -> None:
        self._metadata = metadata
        self._folder = path.parent if metadata is None else path
        alone = ShardEntry(path.name, -1, -1)  # what it should be is not known
        self.entries = (alone,) if metadata is None else metadata.shards
        totals = (None, None) if metadata is None else (metadata.images, metadata.bytes)
        self.meter = Meter(progress, "verifying", *totals)
        self.found = Found()
        self._met = PathSet()
        self._source = source
        self._classes = None if source is None else classes_of(source)

    def run(self) -> None:
        first = images = nbytes = 0
        for entry in self.entries:
            shard = self._open(entry)
            if shard is not None:
                one = ShardCheck(shard, first, self.found, self.meter, self._source, self._met)
                one.run()
                images, nbytes = images + len(shard), nbytes + one.bytes
            first += max(entry.images, 0)
        if self._metadata is not None:
            self._check_sums(self._metadata, images, nbytes)
            self._note_others()
        if self._source is not None and self._classes is not None and self._metadata is not None:
            self._check_missing(self._source, self._classes)

    def _open(self, entry: ShardEntry) -> Shard | None:
        file = self._folder / entry.file
        if not file.is_file():
            self._add(entry.file, "the file is missing")
            return None
        size = file.stat().st_size
        if self._metadata is not None and size != entry.bytes:
            self._add(entry.file, f"it has {size:,} bytes, not {entry.bytes:,}")
        try:
            shard = Shard(file)
        except PtoolsError as error:
            self._add(entry.file, error.message)
            return None
        if self._metadata is not None:
            if len(shard) != entry.images:
                self._add(entry.file, f"it holds {len(shard):,} images, not {entry.images:,}")
            with suppress(PtoolsError):  # reported with the rest of the record
                if not set(shard.classes) <= set(self._metadata.classes):
                    self._add(entry.file, f"it has classes that {META} has not")
        return shard

    def _check_sums(self, metadata: Metadata, images: int, nbytes: int) -> None:
        listed = sum(entry.images for entry in metadata.shards)
        if metadata.images != listed:
            self._add(META, f"it counts {metadata.images:,} images, and {listed:,} in its files")
        if self.found.count == 0 and (metadata.images, metadata.bytes) != (images, nbytes):
            self._add(
                META,
                f"it counts {metadata.images:,} images of {metadata.bytes:,} bytes; "
                f"{images:,} of {nbytes:,} are there",
            )
        if len(set(metadata.classes)) != len(metadata.classes):
            self._add(META, "it names a class twice")

    def _note_others(self) -> None:
        known = {META, SKIPPED, "lock.mdb", *(entry.file for entry in self.entries)}
        self.found.notes.extend(
            f"{file.name!r} is in the folder, but not of the set"
            for file in sorted(self._folder.iterdir())
            if file.name not in known
        )

    def _check_missing(self, source: Path, classes: list[str]) -> None:
        try:
            for one in read_skipped(self._folder):
                self._met.add(one.path)
        except PtoolsError as error:
            self._add(SKIPPED, error.message)
        notes = Notes()
        for entry in scan(source, classes, notes):
            if entry.path not in self._met:
                self._add(str(source / entry.path), "it is not in the set", entry.path)
        for path, reason in notes.unreadable:
            if path not in self._met:
                self._add(str(source / path), f"it cannot be read: {reason}", path)

    def _add(self, file: str, what: str, path: str | None = None) -> None:
        self.found.add(Problem(file, what, path))
