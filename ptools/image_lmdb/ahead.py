"""Read many files one after the other, while the disk already fetches the next ones."""

import errno
import os
import resource
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ptools.errors import PtoolsError
from ptools.image_lmdb.scan import Entry

_FILES_AHEAD = 64
_BYTES_AHEAD = 16 << 20
_BUFFER = 1 << 20
# A file may have become a pipe since it was listed: opening one must not wait.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
_GONE = "changed while it was packed"


class Loaded(NamedTuple):
    """A file's content, or why there is none. `data` holds until the next file is read."""

    entry: Entry
    data: memoryview
    problem: str | None


def read_files(root: Path, entries: Iterable[Entry]) -> Iterator[Loaded]:
    """Read each file, which must still have the size and time of its entry after the reading.

    Raises:
        PtoolsError: the folder is gone, or this process may not open more files.
    """
    buffer = memoryview(bytearray(_BUFFER))
    folder = _open_folder(root)
    opened = _open_ahead(folder, entries)
    try:
        for entry, descriptor in opened:
            if isinstance(descriptor, OSError):
                yield Loaded(entry, buffer[:0], descriptor.strerror or str(descriptor))
                continue
            if entry.size >= len(buffer):
                buffer = memoryview(bytearray(entry.size + 1))
            yield _load(entry, descriptor, buffer)
    finally:
        opened.close()
        os.close(folder)


def _open_folder(root: Path) -> int:
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise PtoolsError(
            f"cannot read {root}: {error.strerror}", hint="bring it back and run the command again"
        ) from error


def _load(entry: Entry, descriptor: int, buffer: memoryview) -> Loaded:
    try:
        length = os.readv(descriptor, [buffer[: entry.size + 1]])
        while length < entry.size and (more := os.readv(descriptor, [buffer[length : entry.size]])):
            length += more
        status = os.fstat(descriptor)
    except OSError as error:
        return Loaded(entry, buffer[:0], error.strerror or str(error))
    finally:
        os.close(descriptor)
    if (length, status.st_size, status.st_mtime_ns) != (entry.size, entry.size, entry.mtime_ns):
        return Loaded(entry, buffer[:0], _GONE)
    return Loaded(entry, buffer[:length], None)


def _open_ahead(
    folder: int, entries: Iterable[Entry]
) -> Generator[tuple[Entry, int | OSError], None, None]:
    waiting: deque[tuple[Entry, int | OSError]] = deque()
    remaining = iter(entries)
    ahead, most = 0, min(_FILES_AHEAD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
    try:
        while True:
            while not waiting or (ahead < _BYTES_AHEAD and len(waiting) < most):
                entry = next(remaining, None)
                if entry is None:
                    break
                waiting.append((entry, _open(folder, entry)))
                ahead += entry.size
            if not waiting:
                return
            ahead -= waiting[0][0].size
            yield waiting.popleft()
    finally:
        for _, descriptor in waiting:
            if isinstance(descriptor, int):
                os.close(descriptor)


def _open(folder: int, entry: Entry) -> int | OSError:
    try:
        descriptor = os.open(entry.path, _FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # not this file's fault
            message = f"cannot open another file: {error.strerror}"
            raise PtoolsError(message, hint="allow more with: ulimit -n 1024") from error
        return error
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # a pipe has nothing to be fetched
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    return descriptor
