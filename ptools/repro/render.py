"""A `ReproReport` as a page: the first difference with its lines, what to do, the verdict."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ptools.console import counted, escaped
from ptools.files import human_bytes
from ptools.program.shown import line_of, lines_of
from ptools.repro.report import ReproReport, Run
from ptools.repro.verdict import Verdict


def page(report: ReproReport) -> RenderableType:
    """The difference, notes, what was run, and the verdict as the last line."""
    parts: list[RenderableType] = []
    if report.verdict is not None:
        parts += [_section(report.verdict), ""]
    parts += [_text(f"note: {note}") for note in report.notes]
    return Group(*parts, _text(_runs(report)), _text(verdict(report), "bold"))


def verdict(report: ReproReport) -> str:
    """The whole in one line."""
    found = report.verdict
    if found is None:
        return _identical(report)
    rank = "" if found.rank is None else f" on rank {found.rank}"
    where = f" at {line_of(found.where)}" if found.where else ""
    return f"the runs part at step {found.step:,}{rank}{where}: {found.summary}"


def _identical(report: ReproReport) -> str:
    if not report.watched:
        return "this program did not import torch: nothing was compared"
    what = [
        counted(report.steps, "step"),
        f"{counted(report.operations, 'operation')} one by one",
        counted(report.beats, "batch, loss or state", "batches, losses and states"),
        f"{human_bytes(report.nbytes)} in all",
    ]
    return "identical: " + ", ".join(what)


def _runs(report: ReproReport) -> str:
    return "ran " + ", then ".join(map(_run, report.runs))


def _run(run: Run) -> str:
    how = f"with other {', '.join(run.perturbed)}" if run.perturbed else "as it is"
    return f"{how} {run.seconds:.1f} s"


def _section(found: Verdict) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for role, place in found.places:
        grid.add_row(_text(role), Group(*lines_of(place)))
    for fact in found.facts:
        grid.add_row("", _text(fact))
    if found.causes:
        grid.add_row("only with", _text(", ".join(found.causes)))
    if found.advice:
        grid.add_row("do", _text(found.advice))
    title = f"{found.summary}, at step {found.step:,}"
    return Group(_text(title, "bold"), Padding(grid, (0, 0, 0, 2)))


def _text(text: str, style: str = "") -> Text:
    return Text(escaped(text), style=style, overflow="fold")
