"""Read many files one after the other, while a slow disk already fetches the next ones."""

import errno
import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ptools.errors import PtoolsError
from ptools.image_lmdb.scan import Entry

_FILES_AHEAD = 64
_BYTES_AHEAD = 16 << 20
# A file may have become a pipe since it was listed: opening one must not wait.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
_GONE = "changed while it was packed"


class Loaded(NamedTuple):
    """A file's content, and what is wrong with it."""

    entry: Entry
    data: bytes
    problem: str | None = None
    unreadable: bool = False  # there is no content


def read_files(root: Path, entries: Iterable[Entry]) -> Iterator[Loaded]:
    """Read each file, which must still have the size and time of its entry after the reading.

    Raises:
        PtoolsError: the folder is gone, or this process may not open more files.
    """
    folder = _open_folder(root)
    try:
        for entry in _asked_for(folder, entries):
            yield _load(folder, entry)
    finally:
        os.close(folder)


def _open_folder(root: Path) -> int:
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise PtoolsError(
            f"cannot read {root}: {error.strerror}", hint="bring it back and run the command again"
        ) from error


def _load(folder: int, entry: Entry) -> Loaded:
    path, _, size, mtime_ns = entry
    try:
        descriptor = os.open(path, _FLAGS, dir_fd=folder)
        try:
            data = os.read(descriptor, size + 1)
            while len(data) < size and (more := os.read(descriptor, size - len(data))):
                data += more
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # not this file's fault
            message = f"cannot open another file: {error.strerror}"
            raise PtoolsError(message, hint="allow more with: ulimit -n 1024") from error
        return Loaded(entry, b"", error.strerror or str(error), unreadable=True)
    if len(data) != size or status.st_size != size or status.st_mtime_ns != mtime_ns:
        return Loaded(entry, b"", _GONE, unreadable=True)
    return Loaded(entry, data)


def _asked_for(folder: int, entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries, some ahead of which the disk was asked for, as long as that has to be read.

    To ask costs a quarter of what it takes to read a small file from the page cache.
    """
    remaining = iter(entries)
    batch: list[Entry] = []
    is_slow = True
    while (following := _batch(remaining)) or batch:
        before = _waits()
        if is_slow:
            for entry in following:
                _ask_for(folder, entry)
        yield from batch
        is_slow = _waits() > before
        batch = following


def _batch(entries: Iterator[Entry]) -> list[Entry]:
    batch, size = [], 0
    for entry in entries:
        batch.append(entry)
        size += entry.size
        if size >= _BYTES_AHEAD or len(batch) == _FILES_AHEAD:
            break
    return batch


def _waits() -> int:
    """Grows when this process reads from a disk, or waits for anything."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_inblock + usage.ru_nvcsw


def _ask_for(folder: int, entry: Entry) -> None:
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # what cannot be opened or fetched is told of when it is read
            descriptor = os.open(entry.path, _FLAGS, dir_fd=folder)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
