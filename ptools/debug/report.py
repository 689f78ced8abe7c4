"""What came of a debug run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ptools.debug.findings import Finding, Table

FOUND = 3


@dataclass(frozen=True)
class Pass:
    """One run of the program: in which mode, how long, and with which exit code it ended."""

    mode: str
    seconds: float
    exit_code: int
    steps: int


@dataclass(frozen=True)
class DebugReport:
    """The findings of all runs of a program; `notes` say what a reader should know of them.

    `exit_code` is 3 if something was found, else the program's own.
    """

    program: str
    mode: str
    seed: int
    passes: tuple[Pass, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    exit_code: int

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        tables = [
            {
                "title": table.title,
                "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows],
            }
            for table in self.tables
        ]
        return {**asdict(self), "tables": tables}
