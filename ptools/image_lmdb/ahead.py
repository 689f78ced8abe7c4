"""Blocks of files, some ahead of which a slow disk already fetches the next ones."""

import os
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from ptools.image_lmdb.scan import Entry

_FILES_AHEAD = 64
_BYTES_AHEAD = 16 << 20
# A file may have become a pipe since it was listed: opening one must not wait.
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
# Linux alone tells of a thread; elsewhere others may make a disk look slow.
_THREAD = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)

Block = list[Entry]


def read_ahead(
    folder: int, blocks: Iterable[Block], read: Callable[[Block], None]
) -> Iterator[Block]:
    """Each block after it was read, the disk having been asked for the next ones if it is slow.

    `folder` is a descriptor of what the paths count from. To ask costs a quarter of what it takes
    to read a small file from the page cache, so that is done only where reading has to wait.
    """
    remaining = iter(blocks)
    some: list[Block] = []
    is_slow = True
    while (following := _some(remaining)) or some:
        before = _waits()
        if is_slow:
            for block in following:
                for entry in block:
                    _ask_for(folder, entry.path)
        is_slow = _waits() > before
        for block in some:
            before = _waits()
            read(block)
            is_slow |= _waits() > before
            yield block
        some = following


def _some(blocks: Iterator[Block]) -> list[Block]:
    some, files, size = [], 0, 0
    for block in blocks:
        some.append(block)
        files += len(block)
        size += sum(entry.size for entry in block)
        if size >= _BYTES_AHEAD or files >= _FILES_AHEAD:
            break
    return some


def _waits() -> int:
    """Grows when this thread reads from a disk, or waits for anything."""
    usage = resource.getrusage(_THREAD)
    return usage.ru_inblock + usage.ru_nvcsw


def _ask_for(folder: int, path: str) -> None:
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # what cannot be opened or fetched is told of when it is read
            descriptor = os.open(path, OPEN_FLAGS, dir_fd=folder)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
