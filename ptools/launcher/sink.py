"""The launcher's own stdout and stderr, as the output of several processes goes there.

Nothing here waits for a slow reader: what cannot be written now stays in `waiting`, and a process
that prints is not read until it is gone, so that it waits as it would if it ran alone. (The one
exception: a terminal may take a piece of 4 KB slowly.)
"""

import codecs
import errno
import os
import re
import select
import stat
import time
from collections import deque
from contextlib import suppress
from typing import TextIO

_PIECE = select.PIPE_BUF  # a pipe that is ready takes as much without blocking
_HELD_SECONDS = 0.5  # after which an unfinished line is shown
_HELD_BYTES = 1 << 20  # of an unfinished line
_ERASE = b"\x1b[K"  # from the cursor to the end of the line

_SEGMENT = re.compile(rb"[^\r\n]*(?:\r\n?|\n)")
_EMPTY = re.compile(rb"(?<![^\r\n])\r(?!\n)")  # a return at the start of a line does nothing
# The start of a character or of an escape sequence, at the end.
_UNFINISHED = re.compile(
    rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2}"
    rb"|\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?)?)\Z"
)


class Sink:
    """One stream of the launcher, which several writers share.

    `error` is why it cannot be written any more; that its reader has gone is none.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None if it was closed from the start
        self._fd = _descriptor(stream)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._waiting: deque[memoryview] = deque()
        self._poll = select.poll()
        self._piece = _PIECE
        self._is_terminal = self._fd is not None and os.isatty(self._fd)
        self._writer: object = None
        self._between = b""  # goes before what another writer writes
        self.error: OSError | None = None
        if stream is not None:
            with suppress(OSError):
                stream.flush()
        if self._fd is not None:
            self._poll.register(self._fd, select.POLLOUT)
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                self._piece = 1 << 20

    @property
    def terminal(self) -> int | None:
        """Its descriptor, if it is a terminal."""
        return self._fd if self._is_terminal else None

    @property
    def waiting(self) -> int | None:
        """Its descriptor, if something waits until that can be written."""
        return self._fd if self._waiting else None

    def is_at(self, writer: object) -> bool:
        """Whether `writer` was the last to write."""
        return self._writer is writer

    def same_file(self, other: "Sink") -> bool:
        if self._fd is None or other._fd is None:
            return self._stream is other._stream
        return os.path.sameopenfile(self._fd, other._fd)

    def write(self, writer: object, data: bytes, between: bytes = b"") -> None:
        """Pass on `data`. `between` is what takes another writer to the start of a line."""
        if self._writer is not writer:
            data = self._between + data
        self._writer, self._between = writer, between
        if self._fd is not None:
            self._waiting.append(memoryview(data))
            self.push()
        elif self._stream is not None:
            self._stream.write(self._decoder.decode(data))
            self._stream.flush()

    def push(self) -> None:
        """Write of what waits as much as goes without blocking."""
        while self._waiting and self._poll.poll(0):
            assert self._fd is not None
            data = self._waiting.popleft()
            try:
                written = os.write(self._fd, data[: self._piece])
            except BlockingIOError:
                written = 0
            except OSError as error:
                self._give_up(error)
                return
            if written < len(data):
                self._waiting.appendleft(data[written:])
            if not written:
                return

    def drain(self) -> None:
        """Write all that waits, however long the reader takes."""
        while self._waiting:
            self._poll.poll()
            self.push()

    def _give_up(self, error: OSError) -> None:
        """The processes go on: they have their logs."""
        self._waiting.clear()
        self._fd = self._stream = None
        if error.errno not in (errno.EPIPE, errno.EIO):
            self.error = error


def _descriptor(stream: TextIO | None) -> int | None:
    """None for a stream that Python code has put there: a notebook's, a test's."""
    try:
        return stream.fileno() if stream is not None else None
    except (OSError, ValueError):
        return None


class Prefixed:
    """Shows what one process prints, by whole lines with its rank before each.

    A segment that ends in a carriage return is a line too: the states of a progress bar overwrite
    each other as they should.
    """

    def __init__(self, sink: Sink, rank: int) -> None:
        self.prefix = b"[%d] " % rank
        self._sink = sink
        self._held = b""  # the unfinished line
        self._shown = 0  # so many bytes of it are on the screen
        self._since = 0.0
        self._is_bar = False  # the line before ended in a carriage return

    def write(self, data: bytes) -> None:
        """Show the lines that are whole now."""
        if len(self._held) == self._shown:
            self._since = time.monotonic()
        data = self._held + data
        # A return that comes last may be the first half of \r\n.
        end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, -1)) + 1
        if end == 0 and len(data) > _HELD_BYTES:
            data, end = data + b"\n", len(data) + 1
        if end:
            self._show(data[:end])
            self._since = time.monotonic()
        self._held = data[end:]

    def tick(self) -> None:
        """Show an unfinished line that has not grown to a whole one for a while."""
        if len(self._held) == self._shown or time.monotonic() < self._since + _HELD_SECONDS:
            return
        if self._held.endswith(b"\r"):
            self._show(self._held)
            self._held = b""
            return
        unfinished = _UNFINISHED.search(self._held)
        text = self.prefix + self._held[: unfinished.start() if unfinished else None]
        between = self._erase(b"\r") if self._is_bar else b"\n"
        self._sink.write(self, text[self._already() :], between)
        self._shown = len(text) - len(self.prefix)
        self._since = time.monotonic()

    def finish(self) -> None:
        """Show what is left, and leave the cursor at the start of an empty line."""
        if self._held or (self._is_bar and self._sink.is_at(self)):
            self.write(b"\n")

    def _show(self, lines: bytes) -> None:
        bar = lines.endswith(b"\r")
        if b"\r" in lines:
            text = _SEGMENT.sub(self.prefix + rb"\g<0>", _EMPTY.sub(b"", lines))
        else:
            text = self.prefix + lines[:-1].replace(b"\n", b"\n" + self.prefix) + b"\n"
        if text:
            self._sink.write(self, text[self._already() :], self._erase(b"") if bar else b"")
        self._is_bar = bar
        self._shown = 0

    def _already(self) -> int:
        """How much of the line is before the cursor. If another wrote since, it comes again."""
        return len(self.prefix) + self._shown if self._shown and self._sink.is_at(self) else 0

    def _erase(self, start: bytes) -> bytes:
        return start if self._sink.terminal is None else start + _ERASE
