"""What a program reads, the same for each run of it."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from tempfile import TemporaryFile
from threading import Thread

_STDIN = 0
_PIECE = select.PIPE_BUF  # bytes that a pipe takes at once when it takes any


class Input:
    """Our stdin: a file is read from where it stood, and a pipe's bytes are kept.

    A terminal is handed on: the person is asked again.
    """

    def __init__(self) -> None:
        try:
            kind = os.fstat(_STDIN).st_mode
        except OSError:  # closed
            kind = 0
        self._offset = os.lseek(_STDIN, 0, os.SEEK_CUR) if stat.S_ISREG(kind) else None
        self._relay = _Relay() if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) else None

    def again(self) -> AbstractContextManager[int | None]:
        """The descriptor that a new process is to read from; None: our own."""
        if self._offset is not None:
            os.lseek(_STDIN, self._offset, os.SEEK_SET)
        return nullcontext() if self._relay is None else self._relay.again()


class _Relay:
    """Passes on what comes through a pipe, from the first byte each time."""

    def __init__(self) -> None:
        self._kept = TemporaryFile(buffering=0)  # noqa: SIM115
        self._is_through = False

    @contextmanager
    def again(self) -> Iterator[int]:
        theirs, ours = os.pipe()
        stopped, stop = os.pipe()
        thread = Thread(target=self._feed, args=(ours, stopped), daemon=True)
        thread.start()
        try:
            yield theirs
        finally:
            os.close(stop)
            thread.join()
            os.close(stopped)
            os.close(theirs)

    def _feed(self, ours: int, stopped: int) -> None:
        place = 0
        try:
            while piece := self._piece(place, stopped):
                place += len(piece)
                if not _is_ready(ours, select.POLLOUT, stopped):
                    return
                os.write(ours, piece)
        finally:
            os.close(ours)

    def _piece(self, place: int, stopped: int) -> bytes:
        """What comes at a place, kept or new; empty at the end."""
        kept = self._kept.fileno()
        piece = os.pread(kept, _PIECE, place)
        if piece or self._is_through or not _is_ready(_STDIN, select.POLLIN, stopped):
            return piece
        piece = os.read(_STDIN, _PIECE)
        self._is_through = not piece
        os.pwrite(kept, piece, place)
        return piece


def _is_ready(descriptor: int, event: int, stopped: int) -> bool:
    """Wait for a descriptor; False if told to stop."""
    poll = select.poll()
    poll.register(descriptor, event)
    poll.register(stopped, select.POLLIN)
    return stopped not in dict(poll.poll())
