"""Ends what the launcher started when the launcher itself is killed, even by kill -9.

A process that the kernel kills with its parent leaves its own children behind: DataLoader workers
would stay for seconds or for ever. The warden is a child that does nothing but wait for the end of
a pipe, which the kernel closes whatever happens.
"""

import os
import signal
from contextlib import suppress
from types import TracebackType
from typing import Self


class Warden:
    """Watches over process groups while the block runs."""

    def __enter__(self) -> Self:
        end, self._pipe = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._pipe)
                _wait(end)
            finally:
                os._exit(0)
        os.close(end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        below: TracebackType | None,
    ) -> None:
        with suppress(BrokenPipeError):
            os.write(self._pipe, b"0\n")
        os.close(self._pipe)
        os.waitpid(self._pid, 0)

    def watch(self, group: int) -> None:
        """Add a process group."""
        with suppress(BrokenPipeError):
            os.write(self._pipe, b"%d\n" % group)


def _wait(pipe: int) -> None:
    """In the child: to the end of the pipe; then kill the groups, unless the last word was 0."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with os.fdopen(pipe, "rb") as lines:
        groups = [int(line) for line in lines]
    if groups[-1:] != [0]:
        for group in groups:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
