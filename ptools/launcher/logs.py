"""The file of all that one process prints, and in memory the last of it."""

import re
from collections import deque
from contextlib import suppress
from pathlib import Path

from ptools.errors import PtoolsError

_KEPT = 64 << 10  # bytes in memory
_LINES = 20  # of what it printed before it failed
_LINE = re.compile(rb"[^\r\n]*(?:\r\n?|\n)")


class Log:
    """One process's log. `recent` is None where nothing will have to be shown later."""

    def __init__(self, path: Path) -> None:
        self.recent: Recent | None = Recent()
        self.error: str | None = None  # why the file ends early
        self._path = path
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise PtoolsError(
                f"cannot write the log {path}: {error.strerror}", "name another folder for the logs"
            ) from error

    def write(self, time_ns: int, data: bytes) -> None:
        """Append what came at that time; a full disk ends the file, and not the run."""
        if self.recent is not None:
            self.recent.add(time_ns, data)
        rest = memoryview(data)
        try:
            while rest and self.error is None:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = f"the log {self._path} ends early: {error.strerror}"

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()


class Recent:
    """What a process printed last, piece by piece with the time when it came."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._is_cut = False

    def add(self, time_ns: int, data: bytes) -> None:
        self._pieces.append((time_ns, data))
        self._bytes += len(data)
        while self._bytes - len(self._pieces[0][1]) >= _KEPT:
            self._bytes -= len(self._pieces.popleft()[1])
            self._is_cut = True

    def since(self, time_ns: int) -> bytes:
        """What came since then, and the few lines before it."""
        text = b"".join(data for _, data in self._pieces)
        before = sum(len(data) for came, data in self._pieces if came < time_ns)
        starts = [0, *(line.end() for line in _LINE.finditer(text))]
        if self._is_cut and len(starts) > 1:
            del starts[0]  # the first line is not whole
        earlier = [start for start in starts if start < before]
        return text[(earlier[-_LINES:] or starts)[0] :]
