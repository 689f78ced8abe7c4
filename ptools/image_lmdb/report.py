"""What came of packing: of one shard, and of a whole set."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ShardReport:
    """One shard as it was written."""

    file: str
    digest: str  # of the part of the plan that it holds
    images: int
    bytes: int  # of the images
    source_bytes: int  # of the files they were made from
    file_bytes: int
    clipped_grey: int  # images of 16-bit grey, which ImageFolder's loader shows clipped to white
    skipped: tuple[Skipped, ...] = ()
    kept: tuple[Skipped, ...] = ()  # packed as they are, though no images

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ShardReport":
        skipped = tuple(Skipped(**one) for one in values["skipped"])
        kept = tuple(Skipped(**one) for one in values["kept"])
        return cls(**{**values, "skipped": skipped, "kept": kept})


@dataclass(frozen=True)
class PackReport:
    """A packed set; `complete` is False while other parts of it are missing."""

    source: Path
    output: str
    classes: int
    images: int
    bytes: int
    source_bytes: int
    file_bytes: int
    shards: int
    seconds: float
    complete: bool = True
    dry_run: bool = False
    shards_kept: int = 0  # finished by an earlier run
    clipped_grey: int = 0
    skipped: tuple[Skipped, ...] = ()
    kept: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = field(default=())  # what was seen in the source, worth a warning

    def to_dict(self) -> dict[str, Any]:
        """As JSON: sizes in bytes, time in seconds."""
        return {**asdict(self), "source": str(self.source)}
