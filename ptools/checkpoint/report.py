"""What `fix_ckpt` did, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptools.checkpoint.names.matching import Match
    from ptools.checkpoint.pickles.plain import Change


@dataclass(frozen=True, slots=True)
class Checked:
    """What was verified: sources against the checksum they came with, the output read back."""

    sources: int = 0
    source_bytes: int = 0
    output_bytes: int = 0

    def __add__(self, other: Checked) -> Checked:
        return Checked(
            self.sources + other.sources,
            self.source_bytes + other.source_bytes,
            self.output_bytes + other.output_bytes,
        )


@dataclass(frozen=True)
class Renaming:
    """Names changed alike: `old` and `new` are patterns or examples, `count` how many."""

    old: str
    new: str
    count: int


@dataclass(frozen=True)
class FixReport:
    """What was found and what was done.

    `outputs` are the files written: none on a dry run, or when there was nothing to fix.
    `containers` are the places that hold weights, `taken` the one that options are about.
    `locations` and `dtypes` count storages by (from, to), `aliases` are names that share the
    memory of another. `anything` tells whether there was anything to fix, `load` is the line of
    Python that loads the weights. Sizes are in bytes.
    """

    source: Path
    format: str
    source_bytes: int
    outputs: tuple[Path, ...]
    output_bytes: int
    output_format: str
    containers: tuple[str, ...]
    taken: str | None
    tensors: int
    renamed: tuple[Renaming, ...]
    locations: dict[tuple[str, str], int]
    dtypes: dict[tuple[str, str], int]
    changes: tuple[Change, ...]
    left_out: tuple[str, ...]
    modules: tuple[str, ...]
    aliases: dict[str, str]
    saved_bytes: int
    checked: Checked
    match: Match | None
    notes: tuple[str, ...]
    anything: bool
    load: str

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {
            "source": str(self.source),
            "format": self.format,
            "source_bytes": self.source_bytes,
            "outputs": [str(path) for path in self.outputs],
            "output_bytes": self.output_bytes,
            "output_format": self.output_format,
            "containers": list(self.containers),
            "taken": self.taken,
            "tensors": self.tensors,
            "renamed": [asdict(renaming) for renaming in self.renamed],
            "locations": counted_moves(self.locations),
            "dtypes": counted_moves(self.dtypes),
            "changes": [asdict(change) for change in self.changes],
            "left_out": list(self.left_out),
            "modules": list(self.modules),
            "aliases": self.aliases,
            "saved_bytes": self.saved_bytes,
            "checked": asdict(self.checked),
            "match": None if self.match is None else _matched(self.match),
            "notes": list(self.notes),
            "anything": self.anything,
            "load": self.load,
        }


def counted_moves(counts: dict[tuple[str, str], int]) -> list[dict[str, Any]]:
    """Counts by (from, to), as JSON takes them."""
    return [{"from": old, "to": new, "count": count} for (old, new), count in counts.items()]


def _matched(match: Match) -> dict[str, Any]:
    return {**asdict(match), "complete": match.complete}
