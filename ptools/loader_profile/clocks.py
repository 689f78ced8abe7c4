"""The clocks of a thread, as the kernel keeps them: on a core, ready for one, and all time.

Linux tells the second in `/proc/thread-self/schedstat` (Documentation/scheduler/sched-stats.rst).
What is left of the wall time was spent waiting: for a disk, the network, a lock, a sleep. Elsewhere
there is the CPU time alone, and what was ready counts as waiting.
"""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_SCHEDSTAT = Path("/proc/thread-self/schedstat")
CLOCKS = 3 if _SCHEDSTAT.exists() else 2
_open = threading.local()


class Clock(NamedTuple):
    """A moment of a thread, or the time between two, in seconds."""

    wall: float
    run: float
    ready: float

    def since(self, before: "Clock") -> "Clock":
        return Clock(self.wall - before.wall, self.run - before.run, self.ready - before.ready)

    @property
    def waiting(self) -> float:
        return max(0.0, self.wall - self.run - self.ready)


def now() -> Clock:
    """The clocks of this thread."""
    if CLOCKS == 2:
        return Clock(time.perf_counter(), time.thread_time(), 0.0)
    try:
        pid, file = _open.file
    except AttributeError:
        pid, file = 0, -1
    if pid != os.getpid():  # a forked process has inherited its parent's
        file = os.open(_SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)
        _open.file = os.getpid(), file
    ready = os.pread(file, 64, 0).split()[1]
    # Of a thread that runs, the first field there is as old as the last tick of the scheduler.
    return Clock(time.perf_counter(), time.thread_time(), int(ready) * 1e-9)


def thread_run(native_id: int) -> float:
    """Seconds on a core of another thread of this process; 0.0 if the kernel does not tell."""
    try:
        return int(Path(f"/proc/self/task/{native_id}/schedstat").read_bytes().split()[0]) * 1e-9
    except OSError:
        return 0.0


def process_run(pids: list[int]) -> float:
    """Seconds on a core of all threads of these processes; 0.0 for those that have gone."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def process_ready(pids: list[int]) -> float:
    """Seconds that the main threads of these processes had no core; 0.0 if it is not told."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += int(Path(f"/proc/{pid}/schedstat").read_bytes().split()[1])
    return total * 1e-9


def machine_run() -> float:
    """Seconds on a core of all processes of the machine; 0.0 if the kernel does not tell."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, *_ = map(int, first.split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
