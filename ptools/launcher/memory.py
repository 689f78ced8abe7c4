"""Whether the kernel has killed a process for memory."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptools.launcher.records import Failure

_CGROUPS = Path("/sys/fs/cgroup")


def memory_kills() -> int | None:
    """How many processes of this container the kernel has killed for memory, if it tells.

    Of cgroups: `oom_kill` in memory.events (v2) or memory.oom_control (v1), else /proc/vmstat.
    """
    for file in _oom_counters():
        try:
            words = file.read_text().split()
            return int(words[words.index("oom_kill") + 1])
        except (OSError, ValueError):
            continue
    return None


def _oom_counters() -> Iterable[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controller, path = line.split(":", 2)
        if controller in ("", "memory"):
            name = "memory.oom_control" if controller else "memory.events"
            yield _CGROUPS / controller / path.lstrip("/") / name
            yield _CGROUPS / controller / name  # in a container whose own part of it is the top
    yield Path("/proc/vmstat")


def with_memory(failure: "Failure", before: int | None, after: int | None) -> "Failure":
    """A SIGKILL that nobody here sent, said to be the kernel's for memory when its count rose."""
    by_kill = failure.how == "killed" and failure.exit_code == 137
    if not by_kill and "killed by signal: Killed" not in failure.message:
        return failure
    if oom_killed(before, after):
        reason = "by the kernel, for memory"
    elif before is None or after is None:
        reason = "probably for memory: nobody here sent it"
    else:
        reason = "not for memory, and not by this launcher"
    from dataclasses import replace

    return replace(failure, message=f"{failure.message.rstrip('.')} ({reason})")


def oom_killed(before: int | None, after: int | None) -> bool:
    """Whether the count of `memory_kills` rose in a run."""
    return before is not None and after is not None and after > before
