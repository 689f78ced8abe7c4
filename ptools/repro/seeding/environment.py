"""What a process reads of its environment as it starts: later is too late."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ptools.cores import usable_cores
from ptools.errors import UsageError

SEED = 1029
LARGEST = 2**32 - 1  # NumPy's and PYTHONHASHSEED's; torch and Python would take more
_AT_START = Path("/proc/self/environ")
_CORES = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Variable:
    """One that makes runs differ when it is not set before Python starts."""

    name: str
    value: str  # what we set it to
    what: str  # what it does
    good: tuple[str, ...] = ()  # other values that do as well; with none, any number does


def check_seed(seed: int) -> int:
    """A seed that each generator takes.

    Raises:
        UsageError: it is no whole number, or out of their range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError(f"the seed {seed!r} is no whole number", hint=f"such as {SEED}")
    if not 0 <= seed <= LARGEST:
        raise UsageError(
            f"the seed {seed} is out of range", hint=f"NumPy takes 0 to {LARGEST}: choose one"
        )
    return seed


def wanted(seed: int, deterministic: bool) -> list[Variable]:
    """The variables for programs that repeat.

    The threads are one for each core that we may use, so that sums are split in the same way in
    each run: left to themselves, OpenMP and MKL may take fewer when the machine is busy.
    """
    found = [
        Variable("PYTHONHASHSEED", str(seed), "order of sets, values of hash()"),
        Variable("OMP_NUM_THREADS", str(cores()), "into how many parts a sum is split"),
        Variable("OMP_DYNAMIC", "FALSE", "that many, though the machine is busy", ("false", "0")),
        Variable("MKL_DYNAMIC", "FALSE", "the same, for MKL", ("false", "0")),
    ]
    if deterministic:
        found += [
            Variable("CUBLAS_WORKSPACE_CONFIG", ":4096:8", "repeatable cuBLAS", (":16:8",)),
            Variable("FLASH_ATTENTION_DETERMINISTIC", "1", "its backward, in transformers"),
        ]
    return found


def is_good(variable: Variable, value: str) -> bool:
    """Whether runs repeat with a value that somebody else has set."""
    if value == variable.value or value in variable.good:
        return True
    first = value.partition(",")[0]  # OMP_NUM_THREADS may have one for each level
    return not variable.good and first.isdecimal() and variable.value != "1"


def split(
    variables: list[Variable], environment: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """What to add to an environment, and a text for each variable of the user's that stays."""
    added, kept = {}, []
    for variable in variables:
        value = environment.get(variable.name, "")
        if not value:
            added[variable.name] = variable.value
        elif value != variable.value:
            doubt = "" if is_good(variable, value) else f" (runs may differ: {variable.what})"
            kept.append(f"{variable.name}={value}{doubt}")
    return added, kept


def rank() -> int:
    """The number of this process among those of a distributed training."""
    text = os.environ.get("RANK", "")
    return int(text) if text.isdecimal() else 0


def at_start() -> Mapping[str, str]:
    """The environment as it was when this process began, where the system tells (on Linux)."""
    try:
        lines = _AT_START.read_bytes().split(b"\0")
    except OSError:
        return os.environ
    pairs = (os.fsdecode(line).partition("=") for line in lines if line)
    return {name: value for name, _, value in pairs}


@cache
def cores() -> int:
    """The physical cores that this process may use: what torch takes on a machine at rest."""
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    siblings = set()
    for number in os.sched_getaffinity(0):
        try:
            file = _CORES / f"cpu{number}/topology/thread_siblings_list"
            siblings.add(file.read_text().strip())
        except OSError:
            siblings.add(str(number))
    return max(1, min(usable_cores(), len(siblings)))
