"""Our ends of the pipes and pseudo-terminals that the processes print to."""

import fcntl
import os
import struct
import termios
from contextlib import suppress

from ptools.launcher.sink import Prefixed, Sink

_AT_ONCE = 1 << 20


class End:
    """One of them, and where is shown what comes from it.

    Without a sink it is not shown, and without `prefixed` it is shown as it comes.
    """

    def __init__(
        self,
        fd: int,
        local_rank: int,
        sink: Sink | None,
        prefixed: Prefixed | None,
        is_terminal: bool,
    ) -> None:
        self.fd, self.local_rank, self.is_terminal = fd, local_rank, is_terminal
        self.sink, self.prefixed = sink, prefixed
        self._size = b""  # of the terminal, as the kernel has it

    def read(self) -> tuple[bytes, bool]:
        """What has come, and whether more may come. A terminal gives it in small pieces."""
        pieces: list[bytes] = []
        size = 0
        while size < _AT_ONCE:
            try:
                data = os.read(self.fd, _AT_ONCE)
            except BlockingIOError:
                return b"".join(pieces), True
            except OSError:  # EIO: nobody has the other end of the terminal any more
                data = b""
            if not data:
                return b"".join(pieces), False
            pieces.append(data)
            size += len(data)
        return b"".join(pieces), True

    def show(self, data: bytes) -> None:
        if self.prefixed is not None:
            self.prefixed.write(data)
        elif self.sink is not None:
            self.sink.write(None, data, b"" if data.endswith(b"\n") else b"\n")

    def tick(self) -> None:
        """Do what time brings: show an unfinished line, follow the size of our terminal."""
        if self.prefixed is not None:
            self.prefixed.tick()
        if self.is_terminal and self.sink is not None and self.sink.terminal is not None:
            with suppress(OSError):
                self._fit(self.sink.terminal)

    def close(self) -> None:
        if self.prefixed is not None:
            self.prefixed.finish()
        os.close(self.fd)

    def _fit(self, terminal: int) -> None:
        size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8))
        if self.prefixed is not None:
            rows, columns, *pixels = struct.unpack("HHHH", size)
            columns = max(columns - len(self.prefixed.prefix), min(columns, 1))
            size = struct.pack("HHHH", rows, columns, *pixels)
        if size != self._size:
            self._size = size
            fcntl.ioctl(self.fd, termios.TIOCSWINSZ, size)


def new_terminal() -> tuple[int, int]:
    """A pseudo-terminal, our end first. The real one makes \\r\\n of \\n."""
    fd, given = os.openpty()
    os.set_blocking(fd, False)
    attributes = termios.tcgetattr(given)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(given, termios.TCSANOW, attributes)
    return fd, given


def new_pipe(size: int) -> tuple[int, int]:
    """A pipe that holds `size` bytes where the system grants it, our end first."""
    fd, given = os.pipe()
    os.set_blocking(fd, False)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    return fd, given
