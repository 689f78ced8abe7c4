"""A `DebugReport` as a page: each finding with its lines, the evidence, what to do, the verdict."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from ptools.console import counted, escaped
from ptools.debug.findings import Finding, Place, Table, TensorStats
from ptools.debug.report import DebugReport
from ptools.files import shown_path
from ptools.tables import columns


def page(report: DebugReport) -> RenderableType:
    """Findings, tables, notes, and the verdict as the last line."""
    parts: list[RenderableType] = []
    for finding in report.findings:
        parts += [_finding(finding), ""]
    for table in report.tables:
        parts += [Text(table.title, style="bold"), _table(table), ""]
    parts += [Text(f"note: {escaped(note)}") for note in report.notes]
    return Group(*parts, Text(verdict(report), style="bold"))


def verdict(report: DebugReport) -> str:
    """The whole in one line."""
    if not report.findings:
        steps = report.passes[-1].steps
        return f"nothing found in {counted(steps, 'step')} (mode {report.mode})"
    first = report.findings[0]
    where = f" at {_line(first.where)}" if first.where else ""
    more = len(report.findings) - 1
    rest = f", and {counted(more, 'more finding')}" if more else ""
    return f"{first.summary}{where}{rest}"


def _finding(finding: Finding) -> Text:
    return Text("\n".join(_lines(finding)))


def _lines(finding: Finding) -> Iterator[str]:
    step = "" if finding.step is None else f" at step {finding.step}"
    rank = "" if finding.rank is None else f" on rank {finding.rank}"
    yield f"{finding.summary}{step}{rank}"
    for role, place in finding.places:
        yield f"  {role:<8} {_line(place)} in {place.function}" + _module(place)
        yield f"           {escaped(place.source)}"
        if place.called_from is not None:
            outer = place.called_from
            yield f"           called from {_line(outer)}: {escaped(outer.source)}"
    for stats in finding.tensors:
        yield f"  {stats.name:<8} {_numbers(stats)}"
    for fact in finding.facts:
        yield f"  {escaped(fact)}"
    if finding.advice:
        yield f"  do       {finding.advice}"


def _line(place: Place | None) -> str:
    return "" if place is None else f"{shown_path(place.file)}:{place.line}"


def _module(place: Place) -> str:
    return f", module {place.module}" if place.module else ""


def _numbers(stats: TensorStats) -> str:
    shape = "x".join(map(str, stats.shape)) or "scalar"
    parts = [f"{shape} {stats.dtype}"]
    if stats.min is not None:
        parts.append(f"{stats.min:.4g} to {stats.max:.4g}")
    parts += [
        f"{number:,} {name}"
        for number, name in ((stats.zeros, "zero"), (stats.nans, "NaN"), (stats.infs, "inf"))
        if number
    ]
    if stats.where is not None:
        parts.append(f"first at {list(stats.where)}")
    return ", ".join(parts)


def _table(table: Table) -> RenderableType:
    grid = columns(*table.columns)
    for row in table.rows:
        grid.add_row(*("" if cell is None else str(cell) for cell in row))
    return grid
