"""What a preflight found."""

import signal
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "failed", "not run"]


@dataclass(frozen=True)
class Row:
    """A fact about the machine."""

    name: str
    value: str
    warning: str | None = None  # what may go wrong with it


@dataclass(frozen=True)
class Check:
    """Something that all processes tried together."""

    name: str
    state: State
    ranks: tuple[int, ...] = ()  # where it failed
    detail: str = ""


@dataclass(frozen=True)
class Bandwidth:
    """How fast all_reduce is for one size of message."""

    size: int  # bytes
    seconds: float  # of one all_reduce, on the slowest rank
    bus: float  # bytes per second


@dataclass(frozen=True)
class PreflightReport:
    """The machine, the checks, and the verdict on them."""

    procs: int
    backend: str  # "gloo" or "nccl"
    rows: tuple[Row, ...]
    checks: tuple[Check, ...]
    bandwidth: tuple[Bandwidth, ...]  # () if not measured
    seconds: float
    signal: int | None = None  # that ended it

    @property
    def ok(self) -> bool:
        return self.signal is None and all(check.state == "ok" for check in self.checks)

    @property
    def exit_code(self) -> int:
        if self.signal is not None:
            return 128 + self.signal
        return 0 if self.ok else 1

    @property
    def verdict(self) -> str:
        """One line."""
        if self.signal is not None:
            return f"stopped by {signal.Signals(self.signal).name}"
        for check in self.checks:
            if check.state == "failed":
                return f"failed: {check.name} on {on(check.ranks)}: {check.detail}"
        if not self.ok:
            return "failed: the processes ended before the checks did"
        if self.procs == 1:
            return f"ok: 1 process trains as expected ({self.backend})"
        return f"ok: {self.procs} processes agree, and train as one would ({self.backend})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "ok": self.ok,
            "exit_code": self.exit_code,
            "verdict": self.verdict,
        }


def on(ranks: tuple[int, ...]) -> str:
    """Which ranks, in words."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
