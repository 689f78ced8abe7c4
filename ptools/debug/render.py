"""A `DebugReport` as a page: each finding with its lines, the evidence, what to do, the verdict."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from ptools.console import counted, escaped
from ptools.debug.findings import Finding, Table, TensorStats
from ptools.debug.report import DebugReport, Pass
from ptools.program.shown import line_of, lines_of


def page(report: DebugReport) -> RenderableType:
    """Findings, tables, notes, what was run, and the verdict as the last line."""
    parts: list[RenderableType] = []
    for finding in report.findings:
        parts += [section(finding), ""]
    for table in report.tables:
        parts += [_text(table.title, "bold"), _table(table), ""]
    parts += [_text(f"note: {note}") for note in report.notes]
    return Group(*parts, _text(_runs(report)), _text(verdict(report), "bold"))


def verdict(report: DebugReport) -> str:
    """The whole in one line."""
    if not report.findings:
        return _nothing(report)
    first = report.findings[0]
    rank = "" if first.rank is None else f" on rank {first.rank}"
    where = f" at {line_of(first.where)}" if first.where else ""
    more = len(report.findings) - 1
    rest = f", and {counted(more, 'more finding')}" if more else ""
    born = first.place("born")
    source = f", from an infinity born at {line_of(born)}" if born else ""
    return f"{first.summary}{rank}{where}{source}{rest}"


def _nothing(report: DebugReport) -> str:
    code = report.exit_code
    if not report.watched:
        what = "this program did not import torch: nothing was watched"
    elif not report.complete:
        what = "nothing found before the program was ended"
    elif not report.steps and not report.ticks:
        what = f"nothing found: no backward, no optimizer step (mode {report.mode})"
    else:
        beats = f"{counted(report.steps, 'step')} and {counted(report.ticks, 'backward call')}"
        what = f"nothing found in {beats} (mode {report.mode})"
    return f"{what}; the program's exit code is {code}" if code else what


def _runs(report: DebugReport) -> str:
    """What was run, and how to run it again."""
    runs = ", then ".join(map(_run, report.passes))
    # Each process of a launched program has a seed of its own.
    return f"ran {runs}" + (f" (--seed {report.seed} repeats it)" if report.ranks == 1 else "")


def _run(one: Pass) -> str:
    return f"mode {one.mode} {one.seconds:.1f} s"


def section(finding: Finding) -> RenderableType:
    """One finding."""
    step = "" if finding.step is None else f" at step {finding.step:,}"
    rank = "" if finding.rank is None else f" on rank {finding.rank}"
    grid = Grid.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for role, place in finding.places:
        grid.add_row(_text(role), Group(*lines_of(place)))
    for stats in finding.tensors:
        grid.add_row(_text(stats.name), _text(_numbers(stats)))
    for fact in finding.facts:
        grid.add_row("", _text(fact))
    if finding.advice:
        grid.add_row("do", _text(finding.advice))
    return Group(_text(f"{finding.summary}{step}{rank}", "bold"), Padding(grid, (0, 0, 0, 2)))


def _numbers(stats: TensorStats) -> str:
    shape = "x".join(map(str, stats.shape)) or "scalar"
    parts = [f"{shape} {stats.dtype}"]
    if stats.min is not None:
        parts.append(f"{stats.min:.4g} to {stats.max:.4g}")
    counts = {
        "zero": stats.zeros,
        "NaN": stats.nans,
        "inf": stats.infs - stats.negative_infs,
        "-inf": stats.negative_infs,
    }
    parts += [f"{number:,} {name}" for name, number in counts.items() if number]
    if stats.where:
        parts.append(f"first at {list(stats.where)}")
    return ", ".join(parts)


def _table(table: Table) -> RenderableType:
    """What is too wide is folded in all columns: none is cut off."""
    grid = Grid(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(table.columns):
        is_text = any(
            isinstance(row[index], str) and not _is_number(row[index]) for row in table.rows
        )
        grid.add_column(name, overflow="fold", justify="left" if is_text else "right")
    for row in table.rows:
        grid.add_row(*("" if cell is None else _text(str(cell)) for cell in row))
    return grid


def _is_number(cell: object) -> bool:
    try:
        float(str(cell).replace(",", "") or "0")
    except ValueError:
        return False
    return True


def _text(text: str, style: str = "") -> Text:
    return Text(escaped(text), style=style, overflow="fold")
