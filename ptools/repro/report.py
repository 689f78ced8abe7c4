"""What came of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ptools.program.process import Ended
from ptools.repro.fingerprints.tolerance import Errors
from ptools.repro.verdict import Verdict

PARTS = 3  # the exit code


@dataclass(frozen=True)
class Run:
    """One run of the program: what was perturbed, how long it took, and how it ended."""

    perturbed: tuple[str, ...]
    seconds: float
    ended: Ended


@dataclass(frozen=True)
class ReproReport:
    """Whether two runs of a program are the same, and where they part.

    `errors` tells how far they are from each other, if a tolerance was given; `record` the file of
    a run that this one was compared with, and `surroundings` what is not the same around them, by
    name: there and here. `steps`, `beats` (batches, losses, outputs and states), `operations` and
    `nbytes` tell what was compared; `watched` whether the program imported torch. `exit_code` is 3
    if the runs part, else the program's own.
    """

    program: str
    verdict: Verdict | None
    runs: tuple[Run, ...]
    notes: tuple[str, ...]
    watched: bool
    ranks: int
    steps: int
    beats: int
    operations: int
    nbytes: int
    exit_code: int
    errors: Errors | None = None
    record: str = ""
    surroundings: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`; `identical` is None if nothing was compared."""
        runs = [
            {"perturbed": one.perturbed, "seconds": one.seconds, "exit_code": one.ended.code}
            for one in self.runs
        ]
        identical = self.verdict is None if self.verdict or self.operations else None
        return {**asdict(self), "identical": identical, "runs": runs}
