"""The facts about this machine that decide whether several processes can train on it."""

import os
import platform
import re
import resource
import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ptools.cores import threads_per_process, usable_cores
from ptools.errors import PtoolsError
from ptools.launcher.preflight.report import Row
from ptools.launcher.route import facing

_SHM = Path("/dev/shm")
_DRIVER = Path("/proc/driver/nvidia/version")
_MEMORY = Path("/proc/meminfo")
_MEMORY_LIMITS = (  # of cgroups v2 and v1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_LITTLE_SHM = 1 << 30
_FEW_FILES = 1024
_SOMEWHERE = "192.0.2.1"  # of a network that is for documents alone: the default route leads there
_GIB = 1 << 30


def rows(procs: int, port: int, facts: Mapping[str, Any]) -> Iterator[Row]:
    """The table. `facts` is what a process said of torch, {} if none got so far."""
    yield Row("python", platform.python_version())
    yield _torch()
    yield from _gpus(facts)
    cores = f"{usable_cores()} usable of {os.cpu_count()}"
    yield Row("cores", f"{cores}, {threads_per_process(procs)} for each of {procs}")
    yield Row("memory", _memory())
    yield _shared_memory()
    yield _open_files()
    yield _hostname()
    yield _interface()
    yield Row("free port", str(port))


def _torch() -> Row:
    try:
        return Row("torch", version("torch"))
    except PackageNotFoundError:
        return Row("torch", "not installed", "the processes need it: pip install torch")


def _gpus(facts: Mapping[str, Any]) -> Iterator[Row]:
    gpus = facts.get("gpus", [])
    not_measured = "not measured: no GPU in use"
    yield Row("GPUs", "; ".join(gpus) or "none in use")
    yield Row("driver", _driver() or "none")
    yield Row("CUDA", facts.get("cuda") or "none in this torch" if facts else "not measured")
    yield Row("NCCL", facts.get("nccl") or not_measured)


def _driver() -> str | None:
    try:
        found = re.search(r"Kernel Module\D*([\d.]+)", _DRIVER.read_text())
    except OSError:
        return None
    return found[1] if found else None


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / _GIB:.1f} GiB"
    if _MEMORY.exists():
        available = re.search(r"MemAvailable:\s+(\d+)", _MEMORY.read_text())
        text += f", {int(available[1]) / 2**20:.1f} GiB available" if available else ""
    limit = _memory_limit()
    return f"{text}, limited to {limit / _GIB:.1f} GiB" if limit and limit < total else text


def _memory_limit() -> int | None:
    """Of the container."""
    for file in _MEMORY_LIMITS:
        try:
            return int(file.read_text())
        except (OSError, ValueError):  # ValueError: "max"
            continue
    return None


def _shared_memory() -> Row:
    if not _SHM.exists():
        return Row("/dev/shm", "none")
    space = os.statvfs(_SHM)
    size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    warning = None
    if free < _LITTLE_SHM:
        warning = "DataLoader workers pass batches through it: docker run --shm-size 8g"
    return Row("/dev/shm", f"{free / _GIB:.2f} GiB free of {size / _GIB:.2f}", warning)


def _open_files() -> Row:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < _FEW_FILES
    warning = "DataLoader workers need one for each tensor: ulimit -n 65536" if few else None
    soft_text, hard_text = ("unlimited" if n < 0 else str(n) for n in (soft, hard))
    return Row("open files", f"{soft_text}, at most {hard_text}", warning)


def _hostname() -> Row:
    name = socket.gethostname()
    try:
        return Row("hostname", f"{name} is {socket.gethostbyname(name)}")
    except OSError:
        warning = "torchrun on several machines needs it; ptools launch --nodes does not"
        return Row("hostname", f"{name}, which has no address", warning)


def _interface() -> Row:
    try:
        route = facing(_SOMEWHERE, 9)
    except PtoolsError:
        return Row("interface", "loopback alone: no other machine can be reached")
    return Row("interface", f"{route.interface or 'unknown'}, {route.address}")
