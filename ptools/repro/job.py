"""What a process of a compared run is told: a small JSON file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
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
        stop: end the program when so many were.
        steps: end it after so many optimizer steps.
        perturbed: what differs on purpose from a plain run.
    """

    folder: str
    start: int = 0
    until: int = FIRST
    stop: int | None = None
    steps: int | None = None
    perturbed: tuple[str, ...] = ()

    def write(self) -> Path:
        """Write the file that VARIABLE names to a process."""
        file = Path(self.folder, "job.json")
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return file


def told() -> Job:
    """The job of this process."""
    job = json.loads(Path(os.environ[VARIABLE]).read_text(encoding="utf-8"))
    return Job(**{**job, "perturbed": tuple(job["perturbed"])})
