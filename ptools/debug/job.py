"""What a process of a debug run is told and what it tells: two small JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptools.debug.findings import Finding, Table, finding_from, table_from

VARIABLE = "PTOOLS_DEBUG_JOB"  # names the job's file to the process
FOUND = 3  # the exit code


@dataclass(frozen=True)
class Job:
    """How a program is watched.

    Args:
        mode: A key of `modes.MODES`.
        folder: Where each process writes its outcome.
        seed: For Python's, NumPy's and torch's generators, before the program uses them.
        start: Begin to trace when so many backward calls were begun.
        at_step: Or when so many optimizer steps are completed.
        keep_going: Do not stop the program at the first finding.
        tensorboard: A folder for histograms.
        again: The program has run before; what it does after a finding is of no interest.
    """

    mode: str
    folder: str
    seed: int
    start: int = 0
    at_step: int | None = None
    keep_going: bool = False
    tensorboard: str | None = None
    again: bool = False

    def write(self) -> Path:
        """Write the file that VARIABLE names to a process."""
        file = Path(self.folder, "job.json")
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return file


@dataclass(frozen=True)
class Outcome:
    """What one process found.

    Args:
        ticks: Backward calls that were begun.
        good_until: Those that were begun when all was known to be well.
        steps: Optimizer steps that were completed.
        watched: The program imported torch.
        asked: It read from a terminal.
        ended: It ended as Python programs do; else what is here may be old.
        stopped: A finding stopped it.
        errors: What it raised, and what that came of, a text each.
    """

    rank: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    ticks: int
    good_until: int
    steps: int
    watched: bool
    asked: bool
    ended: bool
    stopped: bool
    errors: tuple[str, ...]


def told() -> Job:
    """The job of this process."""
    return Job(**json.loads(Path(os.environ[VARIABLE]).read_text(encoding="utf-8")))


def write_outcome(folder: str, rank: int, outcome: dict[str, Any]) -> None:
    """Write one process's outcome, whole or not at all."""
    temporary = Path(folder, f".outcome_{rank}.{os.getpid()}")
    temporary.write_text(json.dumps(outcome), encoding="utf-8")
    temporary.replace(Path(folder, f"outcome_{rank}.json"))


def read_outcomes(folder: str) -> Iterator[Outcome]:
    """The outcomes that are there, by rank."""
    for file in sorted(Path(folder).glob("outcome_*.json")):
        told = json.loads(file.read_text(encoding="utf-8"))
        told["findings"] = tuple(finding_from(one) for one in told["findings"])
        told["tables"] = tuple(table_from(one) for one in told["tables"])
        told["notes"], told["errors"] = tuple(told["notes"]), tuple(told["errors"])
        yield Outcome(**told)
