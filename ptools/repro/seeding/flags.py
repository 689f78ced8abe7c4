"""torch's own switches for results that repeat."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Mode = Literal["strict", "warn", "off"]


@dataclass(frozen=True)
class Flag:
    """An attribute of torch."""

    name: str  # after `torch.`
    value: bool  # with which results repeat
    what: str
    strict: bool = False  # only for results that are to be the same on other GPUs too

    @property
    def line(self) -> str:
        """The line of Python that sets it."""
        return f"torch.{self.name} = {self.value}"


FLAGS = (
    Flag("backends.cudnn.deterministic", True, "cuDNN takes repeatable algorithms only"),
    Flag("backends.cudnn.benchmark", False, "cuDNN does not choose by how fast the machine is now"),
    Flag(
        "utils.deterministic.fill_uninitialized_memory",
        True,
        "torch.empty() is filled, if algorithms are deterministic",
    ),
    Flag("backends.cudnn.allow_tf32", False, "convolutions as on GPUs without TF32", strict=True),
    Flag("backends.cuda.matmul.allow_tf32", False, "products likewise", strict=True),
)
ALGORITHMS = "torch.use_deterministic_algorithms(True{})"


def algorithms_line(mode: Mode) -> str:
    """The line of Python that turns deterministic algorithms on."""
    return ALGORITHMS.format("" if mode == "strict" else ", warn_only=True")


def flags_of(mode: Mode) -> tuple[Flag, ...]:
    """Those that a mode sets."""
    return tuple(one for one in FLAGS if mode == "strict" or (mode == "warn" and not one.strict))


def set_flags(torch: Any, mode: Mode) -> None:
    """Set torch's flags and turn deterministic algorithms on; mode off leaves all as it is."""
    for flag in flags_of(mode):
        home, _, name = flag.name.rpartition(".")
        setattr(attrgetter(home)(torch), name, flag.value)
    if mode != "off":
        torch.use_deterministic_algorithms(True, warn_only=mode == "warn")


def current(flag: Flag) -> bool | None:
    """What a flag is now; None without torch, or where torch does not say."""
    torch = sys.modules.get("torch")
    try:
        return None if torch is None else bool(attrgetter(flag.name)(torch))
    except RuntimeError:  # the program has used torch's newer names for TF32
        return None


def current_algorithms() -> Mode | None:
    """The mode that torch is in; None without torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if not torch.are_deterministic_algorithms_enabled():
        return "off"
    return "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else "strict"


def undone(mode: Mode) -> list[str]:
    """What the program has set otherwise since, as `cudnn.benchmark = True`."""
    found = [
        f"torch.{flag.name} = {not flag.value}"
        for flag in flags_of(mode)
        if current(flag) is (not flag.value)
    ]
    if mode != "off" and current_algorithms() == "off":
        found.append("torch.use_deterministic_algorithms(False)")
    return found
