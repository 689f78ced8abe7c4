"""What a process of a compared run is told: a small JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

VARIABLE = "PTOOLS_REPRO_JOB"  # names the job's file to the process
FIRST = 8  # beats at the start, within which each operation is recorded
ALWAYS = 1 << 62


@dataclass(frozen=True)
class Job:
    """How a run is recorded.

    Args:
        folder: where each process writes its trace.
        start: record each operation when so many beats were recorded,
        until: and until so many were.
        stop: end the program when so many were,
        rank: by the process of this rank; the others end with it.
        steps: end it after so many optimizer steps.
        perturbed: what differs on purpose from a plain run.
        numbers: tell some numbers of each tensor, to compare them within a tolerance.
        surroundings: tell versions, threads and devices, to compare them with a record's.
        outputs: a folder for what the program overwrites; see `writes`.
        resume: record all that a training goes on from, before each forward,
        kill: end the process at the first backward after so many steps, as by kill -9,
        goals: by a digest of the parameters at the start, the steps to make.
    """

    folder: str
    start: int = 0
    until: int = FIRST
    stop: int | None = None
    rank: int = 0
    steps: int | None = None
    perturbed: tuple[str, ...] = ()
    numbers: bool = False
    surroundings: bool = False
    outputs: str = ""
    resume: bool = False
    kill: int | None = None
    goals: Mapping[str, int] = field(default_factory=dict)

    def write(self) -> Path:
        """Write the file that VARIABLE names to a process."""
        file = Path(self.folder, "job.json")
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return file


def told() -> Job:
    """The job of this process."""
    job = json.loads(Path(os.environ[VARIABLE]).read_text(encoding="utf-8"))
    return Job(**{**job, "perturbed": tuple(job["perturbed"])})
