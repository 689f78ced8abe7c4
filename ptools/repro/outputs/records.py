"""What the processes of a run note on files, a line each, and how it is read."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptools.repro.outputs.moves import exists, is_folder, signature

JOURNAL = "journal.jsonl"
OURS = "ptools-repro-"  # is in the name of each folder of our own
KEPT = "kept"  # the folder of the copies
Record = dict[str, Any]  # path; what: made, kept, link, folder, lost or elsewhere; and more


def copy_name(path: Path) -> str:
    """The name of the one copy of a file, whichever process makes it."""
    text = os.fsencode(path)
    return f"{zlib.crc32(text):08x}{zlib.adler32(text):08x}_{path.name[-100:]}"


def add(place: Path, record: Record) -> None:
    """Note one thing. Several processes may do so at once, and be killed at any moment."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    descriptor = os.open(place / JOURNAL, flags, 0o600)
    try:
        os.write(descriptor, json.dumps(record).encode() + b"\n")
    finally:
        os.close(descriptor)


def _lines(place: Path) -> Iterator[Record]:
    """What the processes of a run noted. The last line may be torn."""
    with suppress(FileNotFoundError):
        for line in (place / JOURNAL).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                yield json.loads(line)


def journal(place: Path) -> dict[Path, Record]:
    """For each path what was noted first, but for what lies in a folder that the run made."""
    records: dict[Path, Record] = {}
    for record in _lines(place):
        if record["what"] != "elsewhere":
            records.setdefault(Path(record["path"]), record)
    made = {path for path, record in records.items() if record["what"] == "made"}
    return {path: one for path, one in records.items() if made.isdisjoint(path.parents)}


def elsewhere(place: Path) -> list[Path]:
    """What was written outside the folder."""
    return [Path(record["path"]) for record in _lines(place) if record["what"] == "elsewhere"]


def is_told(path: Path, records: dict[Path, Record]) -> bool:
    """Whether a file, or a folder above it that the run made, is in the records."""
    return path in records or any(
        above in records and records[above]["what"] == "made" for above in path.parents
    )


def is_as_before(path: Path, record: Record) -> bool:
    """Whether a run left a path as it was when the record was made."""
    match record["what"]:
        case "made":
            return not exists(path)
        case "folder":
            return is_folder(path)
        case "link":
            return path.is_symlink() and str(path.readlink()) == record["target"]
    return signature(path) == tuple(record["signature"])
