"""Give a torch file another pickle without touching its storages.

The new `data.pkl` and a new central directory are appended; every byte that was there stays, so
cutting the file back to its old length undoes it. A journal beside the file holds that length until
the new end is on the disk; what was interrupted is undone from it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from ptools.checkpoint.data.archive import (
    directory,
    directory_entries,
    lay_out,
    read_archive,
    whole,
)
from ptools.checkpoint.data.content import Content, Literal
from ptools.checkpoint.data.copying import write_all
from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.output.journal import end_of, journal_of, undo
from ptools.checkpoint.pickles.nodes import Node
from ptools.checkpoint.pickles.pickling import pickled


def patch(path: Path, root: Node) -> None:
    """Replace the pickle of a torch file by that of `root`, whose storages are the file's own.

    Raises:
        CorruptCheckpoint: it could not be read any more; it is left as it was.
    """
    path = path.resolve()
    pickle = pickled(root, lambda storage: storage.key)
    size = path.stat().st_size
    addition = _addition(path, pickle, size)
    records = read_archive(path)
    journal = journal_of(path)
    descriptor = os.open(path, os.O_WRONLY)
    try:
        _write_synced(journal, json.dumps({"size": size, "end": end_of(path, size)}).encode())
        write_all(descriptor, addition, size)
        if not _holds(path, records, pickle):
            raise CorruptCheckpoint(
                f"{path} is an unusual archive, to which nothing can be added",
                hint="write a new file with -o",
            )
        os.fsync(descriptor)
    except BaseException:  # Ctrl-C too
        undo(path)
        raise
    finally:
        os.close(descriptor)
    journal.unlink()


def _addition(path: Path, pickle: bytes, at: int) -> bytes:
    """What comes behind the archive: the new record and a directory of it and the old ones."""
    entries = directory_entries(path)
    (name,) = [name for name in entries if name.partition(b"/")[2] == b"data.pkl"]
    folder = name.partition(b"/")[0].decode("utf-8", "replace")
    (record,) = lay_out(folder, [("data.pkl", Literal(pickle))], at)
    crc = zlib.crc32(pickle)
    entries[name] = record.entry(crc)
    addition = record.header() + pickle + record.descriptor(crc)
    return addition + directory(list(entries.values()), at + len(addition))


def _holds(path: Path, records: Mapping[str, Content], pickle: bytes) -> bool:
    """Whether a file has these records, and this pickle in place of theirs."""
    try:
        found = read_archive(path)
        read = whole(found["data.pkl"], len(pickle))
    except (CorruptCheckpoint, KeyError):
        return False
    return read == pickle and found == {**records, "data.pkl": found["data.pkl"]}


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
