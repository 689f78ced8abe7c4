"""Each variable and flag that makes runs repeat: as it is in this process, and whether in time."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ptools.repro.seeding.environment import Variable, at_start, is_good, wanted
from ptools.repro.seeding.flags import (
    FLAGS,
    Flag,
    Mode,
    algorithms_line,
    current,
    current_algorithms,
    flags_of,
)

State = Literal["in time", "too late", "missing", "other value"]


@dataclass(frozen=True)
class Setting:
    """One variable of the environment, or flag of torch."""

    name: str
    now: str | None  # None where it is not set
    wanted: str
    state: State
    what: str  # what it does
    line: str  # to paste: into the shell for a variable, into the script for a flag

    def to_dict(self) -> dict[str, Any]:
        """The setting as JSON values."""
        return asdict(self)


def settings(seed: int, mode: Mode) -> tuple[Setting, ...]:
    """All that a mode needs."""
    began = at_start()
    variables = [_of_variable(one, began) for one in wanted(seed, mode != "off")]
    flags = [_of_flag(one) for one in FLAGS if one in flags_of(mode)]
    return (*variables, *flags, *([_of_algorithms(mode)] if mode != "off" else []))


def _of_variable(variable: Variable, began: Mapping[str, str]) -> Setting:
    now, first = os.environ.get(variable.name) or None, began.get(variable.name, "")
    state: State = "in time"
    if now is None:
        state = "missing"
    elif not is_good(variable, now):
        state = "other value"
    elif not is_good(variable, first) and _is_read(variable.name):
        state = "too late"
    line = f"export {variable.name}={variable.value}"
    return Setting(variable.name, now, variable.value, state, variable.what, line)


def _is_read(name: str) -> bool:
    """Whether a variable that is set now comes too late for this process."""
    torch = sys.modules.get("torch")
    if name == "CUBLAS_WORKSPACE_CONFIG":
        return torch is not None and bool(torch.cuda.is_initialized())
    if name == "FLASH_ATTENTION_DETERMINISTIC":  # read at each call
        return False
    return torch is not None or name == "PYTHONHASHSEED"


def _of_flag(flag: Flag) -> Setting:
    now = current(flag)
    state: State = "in time" if now is flag.value else "missing"
    shown = None if now is None else str(now)
    return Setting(f"torch.{flag.name}", shown, str(flag.value), state, flag.what, flag.line)


def _of_algorithms(mode: Mode) -> Setting:
    now = current_algorithms()
    return Setting(
        "torch.use_deterministic_algorithms",
        now,
        mode,
        "in time" if now in (mode, "strict") else "missing",
        "deterministic versions where torch has them",
        algorithms_line(mode),
    )
