"""How many processor cores this process may use."""

import os
from pathlib import Path

_CGROUP_2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_1 = (
    Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
    Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)


def usable_cores() -> int:
    """The cores of the affinity mask, or fewer if a container's quota allows fewer."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def threads_per_process(procs: int) -> int:
    """An equal share of the cores: what OMP_NUM_THREADS should be."""
    return max(1, usable_cores() // procs)


def _quota() -> float | None:
    """The cores that the cgroup's quota is worth; None without one."""
    try:
        if _CGROUP_2.exists():
            quota, period = _CGROUP_2.read_text().split()
        else:
            quota, period = (file.read_text().strip() for file in _CGROUP_1)
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None
