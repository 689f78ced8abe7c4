"""What the processes of a run leave for the launcher: small JSON files, one of a kind a rank."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = "PTOOLS_LAUNCH_FOLDER"  # names the run's folder to its processes


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


def write(kind: str, rank: int, values: dict[str, Any], folder: Path | None = None) -> None:
    """Write `KIND_RANK.json`, whole or not at all."""
    folder = Path(os.environ[FOLDER]) if folder is None else folder
    temporary = folder / f".{kind}_{rank}.{os.getpid()}"
    temporary.write_text(json.dumps(values), encoding="utf-8")
    temporary.replace(folder / f"{kind}_{rank}.json")


def read(kind: str, folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """All files of a kind that are there, with their ranks."""
    for file in sorted(folder.glob(f"{kind}_*.json")):
        yield int(file.stem.rpartition("_")[2]), json.loads(file.read_text(encoding="utf-8"))


def write_failure(failure: Failure, folder: Path | None = None) -> None:
    write("failure", failure.rank, asdict(failure), folder)


def read_failures(folder: Path) -> list[Failure]:
    """The failures that the processes have reported themselves."""
    return [
        Failure(**{**values, "frames": tuple(Frame(**frame) for frame in values["frames"])})
        for _, values in read("failure", folder)
    ]
