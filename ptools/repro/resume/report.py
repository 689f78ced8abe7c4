"""What came of a resumed run, and its page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ptools.console import counted, escaped
from ptools.program.places import Place
from ptools.program.shown import line_of, lines_of
from ptools.repro.report import Run
from ptools.repro.resume.data import Lost

_RUNS = ("uninterrupted", "killed", "resumed")


@dataclass(frozen=True)
class ResumeReport:
    """Whether a resumed run continues bit for bit.

    Args:
        resume_at: optimizer steps after which the run was killed.
        start: steps that had been made where it goes on; None if that is unknown.
        steps: that are the same from there on.
        parts: the first difference from there on; empty if there is none.
        where: its line.
        lost: states that were not restored, the most important first.
        facts: about the first difference.
        notes: about the runs.
    """

    program: str
    resume_at: int
    start: int | None
    steps: int
    parts: str
    where: Place | None
    lost: tuple[Lost, ...]
    facts: tuple[str, ...]
    notes: tuple[str, ...]
    runs: tuple[Run, ...]
    exit_code: int

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        runs = [{"seconds": one.seconds, "exit_code": one.ended.code} for one in self.runs]
        return {**asdict(self), "continues": self.exit_code == 0, "runs": runs}


def verdict(report: ResumeReport) -> str:
    """The whole in one line."""
    if report.exit_code == 0:
        steps = counted(report.steps, "step")
        return f"continues bit for bit from step {report.start:,} for {steps}"
    where = f" at {line_of(report.where)}" if report.where else ""
    what = ", ".join(one.what for one in report.lost)
    lost = f"not restored: {what}" if report.lost else ""
    parts = f"{report.parts}{where}" if report.parts else ""
    return "; ".join(one for one in (lost, parts) if one)


def page(report: ResumeReport) -> RenderableType:
    """What was not restored, the first difference, notes, and the verdict as the last line."""
    parts: list[RenderableType] = []
    for one in report.lost:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for fact in one.facts:
            grid.add_row("", _text(fact))
        if one.save:
            grid.add_row("do", _text(one.save))
        parts += [_text(f"not restored: {one.what}", "bold"), Padding(grid, (0, 0, 1, 2))]
    if report.parts:
        lines = [*(lines_of(report.where) if report.where else ()), *map(_text, report.facts)]
        parts += [_text(report.parts, "bold"), Padding(Group(*lines), (0, 0, 1, 4))]
    parts += [_text(f"note: {note}") for note in report.notes]
    return Group(*parts, _text(", ".join(_told(report))), _text(verdict(report), "bold"))


def _told(report: ResumeReport) -> Iterator[str]:
    for name, run in zip(_RUNS, report.runs, strict=False):
        at = f" after step {report.resume_at:,}" if name == "killed" else ""
        yield f"{name}{at} {run.seconds:.1f} s"


def _text(text: str, style: str = "") -> Text:
    return Text(escaped(text), style=style, overflow="fold")
