"""The journal of a `patch` in place: what the file was before, so that it can be had back."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ptools.checkpoint.errors import CorruptCheckpoint

_KNOWN_BY = 128  # bytes at a file's end; any archive is longer


def undo(path: Path) -> bool:
    """Take back an interrupted `patch`, if there was one."""
    journal = journal_of(path)
    if not journal.is_file():
        return False
    size = _size_before(path, journal)
    if size is not None:
        os.truncate(path, size)
    journal.unlink()
    return True


def _size_before(path: Path, journal: Path) -> int | None:
    """What the journal says, if that is of this file and whole: else nothing was begun."""
    try:
        before = json.loads(journal.read_bytes())
    except (ValueError, RecursionError):
        return None
    match before:
        case {"size": int(size), "end": str(end)} if path.is_file():
            fits = _KNOWN_BY <= size <= path.stat().st_size
            return size if fits and end == end_of(path, size) else None
    return None


def refuse_interrupted(path: Path) -> None:
    """Raises CorruptCheckpoint if a `patch` of the file was interrupted."""
    if journal_of(path).is_file():
        raise CorruptCheckpoint(
            f"an interrupted --inplace left {path} half written",
            hint=f"restore and fix it with: ptools fix-ckpt {path} --inplace",
        )


def journal_of(path: Path) -> Path:
    """Where the journal of a patch lies: beside the file."""
    file = Path(os.path.realpath(path))  # a link's file is what is patched
    return file.with_name(f".{file.name}.ptools-undo")


def end_of(path: Path, size: int) -> str:
    """The last bytes of the first `size`, by which the file is known again."""
    with path.open("rb") as file:
        file.seek(max(0, size - _KNOWN_BY))
        return file.read(min(size, _KNOWN_BY)).hex()
