"""A `ReproReport` as a page: the first difference with its lines, what to do, the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ptools.console import counted, escaped
from ptools.files import human_bytes
from ptools.program.shown import line_of, lines_of
from ptools.repro.fingerprints.render_errors import growth, within
from ptools.repro.report import ReproReport, Run
from ptools.repro.verdict import Verdict

_WORDS = {
    "hash": "hash seed",
    "fs": "order of files",
    "time": "time of day",
    "threads": "number of threads",
}


def page(report: ReproReport) -> RenderableType:
    """The difference, notes, what was run, and the verdict as the last line."""
    parts: list[RenderableType] = []
    if report.verdict is not None:
        parts += [section(report.verdict), ""]
    if report.errors is not None:
        parts.append(growth(report.errors))
    if report.verdict is None:  # else its section tells them
        differ = report.surroundings.items()
        parts += [_text(f"note: {name} is not the same: {a} and {b}") for name, (a, b) in differ]
    parts += [_text(f"note: {note}") for note in report.notes]
    return Group(*parts, _text(_runs(report)), _text(verdict(report), "bold"))


def verdict(report: ReproReport) -> str:
    """The whole in one line."""
    return f"{report.record}: {_verdict(report)}" if report.record else _verdict(report)


def _verdict(report: ReproReport) -> str:
    found = report.verdict
    if found is None:
        same = _identical(report)
        return same if report.errors is None else within(report.errors, same)
    if found.kind == "ranks":
        return found.summary
    rank = "" if found.rank is None else f" on rank {found.rank}"
    where = f" at {line_of(found.where.called_from or found.where)}" if found.where else ""
    return f"the runs part at step {found.step:,}{rank}{where}: {found.summary}"


def _identical(report: ReproReport) -> str:
    if not report.watched:
        return "this program did not import torch: nothing was compared"
    ends = f"; it ends with exit code {report.exit_code}" if report.exit_code else ""
    if not report.operations:
        return f"this program computed nothing with torch: nothing was compared{ends}"
    what = [
        counted(report.steps, "step"),
        f"{counted(report.operations, 'operation')} one by one",
        f"{report.beats:,} points (batches, losses, states)",
        f"{human_bytes(report.nbytes)} in all",
    ]
    return f"identical: {', '.join(what)}{ends}"


def _runs(report: ReproReport) -> str:
    return "ran " + ", then ".join(map(_run, report.runs))


def _run(run: Run) -> str:
    how = f"with {_other(run.perturbed)}" if run.perturbed else "as it is"
    return f"{how} {run.seconds:.1f} s"


def _other(perturbed: Sequence[str]) -> str:
    return "another " + " and ".join(_WORDS[name] for name in perturbed)


def as_text(found: Verdict) -> str:
    """The difference as a program prints it, without a terminal's codes."""
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(section(found))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def section(found: Verdict) -> RenderableType:
    """The difference: its lines, what is known of it, and what to do."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for role, place in found.places:
        grid.add_row(_text(role), Group(*lines_of(place)))
    for fact in found.facts:
        grid.add_row("", _text(fact))
    if found.causes:
        grid.add_row("only", _text(f"with {_other(found.causes)}"))
    if found.advice:
        grid.add_row("do", _text(found.advice))
    return Group(_text(_title(found), "bold"), Padding(grid, (0, 0, 0, 2)))


def _title(found: Verdict) -> str:
    if found.kind == "ranks":
        return found.summary
    rank = "" if found.rank is None else f" on rank {found.rank}"
    return f"{found.summary}, at step {found.step:,}{rank}"


def _text(text: str, style: str = "") -> Text:
    return Text(escaped(text), style=style, overflow="fold")
