"""What the processes print: every byte into files, and to the terminal what a person wants."""

import os
import select
import sys
import time
from pathlib import Path
from typing import Literal

from ptools.launcher.ends import End, new_pipe, new_terminal
from ptools.launcher.logs import Log
from ptools.launcher.sink import Prefixed, Sink
from ptools.launcher.wire import read

Show = Literal["first", "all", "none"]

_PIPE = 1 << 20
_ALL_PIPES = 16 << 20  # a user may have 64 MB of them, before every new one becomes small
_GATHER = 0.001  # seconds: few large reads leave the processors to those who print


class Output:
    """The pipes of all processes of this machine.

    `ends` gives the ends that a process writes to, `started` closes them here, `pump` moves what
    has come, `drain` what is left.
    """

    def __init__(self, folder: Path, procs: int, show: Show, first_rank: int = 0) -> None:
        self._folder, self._procs, self._show, self._first_rank = folder, procs, show, first_rank
        self._out, self._err = Sink(sys.stdout), Sink(sys.stderr)
        if self._out.same_file(self._err):
            self._err = self._out  # and one pipe for both: all stays in order
        self._ends: dict[int, End] = {}
        self._given: dict[int, set[int]] = {}
        self._logs = [Log(folder / f"rank_{first_rank + local}.log") for local in range(procs)]
        self._is_told = False  # that a log ends early
        self.last_ns = 0  # when something came last

    def ends(self, local_rank: int) -> tuple[int, int]:
        """Where process `local_rank` writes its stdout and stderr.

        What is shown on a terminal is printed to a terminal; all else goes through a pipe.
        """
        self._given[local_rank] = set()
        if self._show == "none" or (self._show == "first" and local_rank > 0):
            given = self._new(local_rank, None)
            return given, given
        self._logs[local_rank].recent = None
        given = self._new(local_rank, self._out)
        return given, given if self._err is self._out else self._new(local_rank, self._err)

    def started(self, local_rank: int) -> None:
        """The process has them: close them here."""
        for given in self._given.pop(local_rank):
            os.close(given)

    def pump(self, timeout: float) -> None:
        """Wait at most so many seconds for something to come, and pass it on."""
        poll = select.poll()
        for end in self._ends.values():
            if end.sink is None or end.sink.waiting is None:
                poll.register(end.fd, select.POLLIN)
        waiting = [sink.waiting for sink in (self._out, self._err) if sink.waiting is not None]
        for fd in waiting:
            poll.register(fd, select.POLLOUT)
        ready = poll.poll(timeout * 1000)
        if ready and not waiting:
            time.sleep(_GATHER)
        for fd, _ in ready:
            if fd in self._ends:
                self._pass_on(self._ends[fd])
        self._out.push()
        self._err.push()
        for end in self._ends.values():
            end.tick()

    def drain(self) -> None:
        """Pass on what is left, when all processes have ended.

        Waits for the reader of the launcher's stdout, but not for processes that were left behind,
        which may print for ever.
        """
        for end in list(self._ends.values()):
            self._pass_on(end)  # no pipe holds more than that takes
            self._out.drain()
            self._err.drain()
        for end in list(self._ends.values()):
            self._close(end)
        for log in self._logs:
            log.close()
        for sink in (self._out, self._err):
            sink.drain()
            if sink.error is not None:
                self._say(f"the launcher's output ends early: {sink.error.strerror}")
        self._err.drain()

    def show_from_failure(self, local_rank: int) -> None:
        """Show what a process prints from its failure on, and a few lines before it, on stderr."""
        recent, self._logs[local_rank].recent = self._logs[local_rank].recent, None
        if recent is None or self._show == "none":
            return
        rank = self._first_rank + local_rank
        failed = {rank: values["time_ns"] for rank, values in read("failure", self._folder)}
        prefixed = Prefixed(self._err, rank)
        prefixed.write(recent.since(failed.get(rank, time.time_ns())))
        for end in self._ends.values():
            if end.local_rank == local_rank:
                end.sink, end.prefixed = self._err, prefixed
                return
        prefixed.finish()

    def _new(self, local_rank: int, sink: Sink | None) -> int:
        """Register a new end of ours, and return the other."""
        is_terminal = sink is not None and sink.terminal is not None
        size = min(_PIPE, _ALL_PIPES // self._procs)
        fd, given = new_terminal() if is_terminal else new_pipe(size)
        is_prefixed = sink is not None and self._show == "all"
        prefixed = Prefixed(sink, self._first_rank + local_rank) if sink and is_prefixed else None
        self._ends[fd] = End(fd, local_rank, sink, prefixed, is_terminal)
        self._ends[fd].tick()
        self._given[local_rank].add(given)
        return given

    def _pass_on(self, end: End) -> None:
        data, is_open = end.read()
        if data:
            self.last_ns = time.time_ns()
            log = self._logs[end.local_rank]
            log.write(self.last_ns, data)
            if log.error is not None and not self._is_told:
                self._is_told = True
                self._say(log.error)
            end.show(data)
        if not is_open:
            self._close(end)

    def _close(self, end: End) -> None:
        end.close()
        del self._ends[end.fd]

    def _say(self, error: str) -> None:
        self._err.write(self, os.fsencode(f"error: {error}\n"))
