"""What a program runs in: what may make it come to other numbers elsewhere."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ABSENT = "-"
_GIT = 5.0  # seconds


def surroundings() -> dict[str, str]:
    """Versions, threads and devices, of a process that has imported torch."""
    import torch

    cuda = torch.cuda.is_initialized()
    names = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count() * cuda)]
    told = {
        "torch": str(torch.__version__),
        "devices": ", ".join(names) or "cpu",
        "threads": str(torch.get_num_threads()),
        "precision of matmul": torch.get_float32_matmul_precision(),
        "NumPy": _version("numpy"),
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "CPU": f"{_cpu()}, {torch.backends.cpu.get_cpu_capability()}",
    }
    if names:
        told["CUDA"] = str(torch.version.cuda)
        told["cuDNN"] = str(torch.backends.cudnn.version())
    return told


def commit_of(program: str) -> dict[str, str]:
    """The commit that a program is of, and whether files were changed since; if there is one."""
    folder = Path(program).resolve().parent if program else Path.cwd()
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": f"{commit} and changes" if changed else commit}


def differing(mine: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What is not the same in both, by name."""
    names = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
    return {name: (mine.get(name, _ABSENT), other.get(name, _ABSENT)) for name in names}


def computes_alike(mine: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a program has the same operations in both: other versions and devices have others."""
    return all(mine.get(name) == other.get(name) for name in ("torch", "devices", "CPU"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _ABSENT


def _cpu() -> str:
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=_GIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
