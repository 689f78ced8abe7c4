"""A checkpoint as it lies on the disk: a tree of what it holds, and where each byte is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ptools.checkpoint.pickles.nodes import Node


@dataclass(slots=True)
class Checkpoint:
    """What `open_checkpoint` reads; of the weights themselves only their places.

    `format` names what it is ("torch zip", "safetensors", ...), `files` where it lies, `pickle` is
    the source's own pickle if it has one file with one.
    """

    path: Path
    format: str
    root: Node
    files: tuple[Path, ...]
    pickle: bytes | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def protocol(self) -> int | None:
        """Of the source's pickle; `weights_only=True` reads no other than 2."""
        if self.pickle is None:
            return None
        return self.pickle[1] if self.pickle[:1] == b"\x80" else 0

    @property
    def nbytes(self) -> int:
        """Its size on the disk."""
        return sum(file.stat().st_size for file in self.files)
