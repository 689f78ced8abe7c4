"""The failure of one process: what it leaves for the launcher, or what is seen from there."""

import signal
from dataclasses import asdict, dataclass
from pathlib import Path

from ptools.launcher.wire import read, write


@dataclass(frozen=True)
class Frame:
    """One line of a traceback."""

    file: str
    line: int
    function: str
    source: str


@dataclass(frozen=True)
class Failure:
    """Why and when a process ended that should not have."""

    rank: int
    time_ns: int
    type: str  # of the exception; "killed" or "exit" if there was none
    message: str
    how: str  # "uncaught", "exit", "killed"
    frames: tuple[Frame, ...] = ()  # outermost first
    text: str = ""  # the traceback
    exit_code: int | None = None  # as a shell gives it: 128 + signal for a killed process


def write_failure(failure: Failure, folder: Path | None = None) -> None:
    write("failure", failure.rank, asdict(failure), folder)


def read_failures(folder: Path) -> list[Failure]:
    """The failures that the processes have reported themselves."""
    return [
        Failure(**{**values, "frames": tuple(Frame(**frame) for frame in values["frames"])})
        for _, values in read("failure", folder)
    ]


def silent(rank: int, code: int, ended_ns: int) -> Failure:
    """A process that ended badly and wrote nothing: killed, or by os._exit."""
    if code > 0:
        return Failure(rank, ended_ns, "exit", f"exit code {code}", "exit", exit_code=code)
    name = signal.Signals(-code).name
    return Failure(rank, ended_ns, "killed", f"killed by {name}", "killed", exit_code=128 - code)
