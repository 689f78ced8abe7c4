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

from ptools.checkpoint.archive import directory, directory_entries, lay_out, read_archive, whole
from ptools.checkpoint.content import Content, Literal
from ptools.checkpoint.copying import write_all
from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.nodes import Node
from ptools.checkpoint.pickling import pickled

_KNOWN_BY = 128  # bytes at a file's end; any archive is longer


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
    journal = _journal(path)
    descriptor = os.open(path, os.O_WRONLY)
    try:
        _write_synced(journal, json.dumps({"size": size, "end": _end(path, size)}).encode())
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


def undo(path: Path) -> bool:
    """Take back an interrupted `patch`, if there was one."""
    journal = _journal(path)
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
            return size if fits and end == _end(path, size) else None
    return None


def refuse_interrupted(path: Path) -> None:
    """Raises CorruptCheckpoint if a `patch` of the file was interrupted."""
    if _journal(path).is_file():
        raise CorruptCheckpoint(
            f"an interrupted --inplace left {path} half written",
            hint=f"restore and fix it with: ptools fix-ckpt {path} --inplace",
        )


def _journal(path: Path) -> Path:
    path = path.resolve()  # a link's file is what is patched
    return path.with_name(f".{path.name}.ptools-undo")


def _end(path: Path, size: int) -> str:
    """The last bytes of the first `size`, by which the file is known again."""
    with path.open("rb") as file:
        file.seek(max(0, size - _KNOWN_BY))
        return file.read(min(size, _KNOWN_BY)).hex()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
