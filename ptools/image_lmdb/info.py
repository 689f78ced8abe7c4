"""What a database holds, told from its rows: no image is read."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptools.image_lmdb.database import Database, Images, open_images
from ptools.image_lmdb.errors import DamagedDatabase
from ptools.image_lmdb.metadata import ShardEntry, read_skipped
from ptools.image_lmdb.record import FORMAT
from ptools.image_lmdb.shard import Shard


@dataclass(frozen=True)
class DatabaseInfo:
    """The content of a database; what a foreign one does not tell is None."""

    path: Path
    kind: str  # "ptools-images", or the layout of another tool
    version: int | None  # of the format
    images: int
    classes: Mapping[str, int]  # images by class, in the order of the labels
    bytes: int | None  # of the images
    file_bytes: int
    shards: tuple[ShardEntry, ...]
    smallest_bytes: int | None = None
    median_bytes: int | None = None  # of an even number, the lower one of the middle
    largest_bytes: int | None = None
    skipped: int = 0  # files that were left out when it was packed

    def to_dict(self) -> dict[str, Any]:
        """As JSON: sizes in bytes."""
        return {**asdict(self), "path": str(self.path)}


def describe(path: str | Path) -> DatabaseInfo:
    """Count the images, classes and bytes of a set, of one of its files, or of a foreign database.

    Raises:
        NotADatabase: there is none that can be read.
        DamagedDatabase: a file is missing, cut short, or its metadata is damaged.

        describe("imgs.lmdb").classes["cat"]
    """
    images = open_images(path)
    return _ours(images) if isinstance(images, Database) else _foreign(images)


def _ours(database: Database) -> DatabaseInfo:
    lengths: Counter[int] = Counter()
    classes = Counter(dict.fromkeys(database.classes, 0))
    version = None
    for number in range(len(database.shards)):
        shard = database.shard(number)
        version = shard.header["version"]
        _count(shard, lengths, classes)
    return DatabaseInfo(
        path=database.path,
        kind=FORMAT,
        version=version,
        images=len(database),
        classes=dict(classes),
        bytes=sum(length * count for length, count in lengths.items()),
        file_bytes=sum(entry.bytes for entry in database.shards),
        shards=tuple(database.shards),
        smallest_bytes=min(lengths, default=None),
        median_bytes=_median(lengths),
        largest_bytes=max(lengths, default=None),
        skipped=sum(1 for _ in read_skipped(database.path)),
    )


def _count(shard: Shard, lengths: Counter[int], classes: Counter[str]) -> None:
    labels: Counter[int] = Counter()
    for row in shard.rows():
        lengths[row.length] += 1
        labels[row.label] += 1
    names = shard.classes
    if max(labels, default=-1) >= len(names):
        message = f"{shard.path} has labels beyond its classes"
        raise DamagedDatabase(message, "copy it again, or pack the set again")
    for label, count in labels.items():
        classes[names[label]] += count


def _median(counts: Counter[int]) -> int | None:
    before, middle = 0, (counts.total() - 1) // 2
    for length in sorted(counts):
        before += counts[length]
        if before > middle:
            return length
    return None


def _foreign(images: Images) -> DatabaseInfo:
    labels = Counter(images.labels())
    file = images.path / "data.mdb" if images.path.is_dir() else images.path
    size = file.stat().st_size
    return DatabaseInfo(
        path=images.path,
        kind=str(getattr(images, "kind", "foreign")),
        version=None,
        images=len(images),
        classes={name: labels[label] for label, name in enumerate(images.classes)},
        bytes=None,
        file_bytes=size,
        shards=(ShardEntry(file.name, len(images), size),),
    )
