"""A `FusionReport` as a page: what was folded, what it saves, how it is proven, the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ptools.console import counted, escaped
from ptools.fusion.options import Option
from ptools.fusion.reasons import grouped
from ptools.fusion.report import Difference, FusionReport, Latency, Operations, Variant
from ptools.fusion.steps import Own
from ptools.tables import columns, facts_grid

_NAMES = 3  # of batch norms that stay for one reason
_PREFIXES = ("", "K", "M", "G", "T")
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


@dataclass(frozen=True)
class Written:
    """A file that was written: what is in it, and the line of Python that loads it."""

    path: Path
    note: str
    line: str


def page(report: FusionReport, written: Sequence[Written] = ()) -> RenderableType:
    """Everything that was done and measured, in the order in which one asks."""
    parts: list[RenderableType] = [facts_grid(_found(report)), "", _costs(report), ""]
    parts += [facts_grid(_proof(report)), ""]
    if report.variants:
        parts += [_variants(report.variants), ""]
    if written:
        parts += [facts_grid(_files(written)), ""]
    return Group(*parts, Text(verdict(report), style="bold"))


def verdict(report: FusionReport) -> str:
    """The whole in one line."""
    error = f"error {_digits(report.difference.relative)} of the output's spread"
    if not report.equal:
        return f"NOT EQUAL: {error}, {_digits(report.tolerance)} is allowed"
    if not report.norms and not report.steps:
        return "nothing to fold: the model has no batch norms"
    if not report.steps:
        return (
            f"nothing was folded: {counted(report.norms, 'batch norm')} left, for the reasons above"
            + _of_options(report)
        )
    if not report.norms:
        return f"equal: {error}, no batch norms, {counted(len(report.steps), 'change')}"
    text = f"equal: {error}, {report.folded} of {counted(report.norms, 'batch norm')} folded"
    return text + _of_options(report)


def _of_options(report: FusionReport) -> str:
    """The error of the model as it is handed out, with the options that it was given."""
    made = [step.name for step in report.steps if isinstance(step, Option)]
    last = next((each for each in reversed(report.variants) if each.name in made), None)
    failed = [each.name for each in report.variants if each.problem]
    text = f"; without {', '.join(failed)}" if failed else ""
    if last is None or last.difference is None:
        return text
    return f"; {_digits(last.difference.relative)} with {', '.join(made)}{text}"


def _found(report: FusionReport) -> Iterator[tuple[str, str]]:
    yield "model", f"{report.name} with {report.inputs}, {report.input_source}"
    stay = f", {len(report.left)} left" if report.left else ""
    count = f"{report.folded} of {counted(report.norms, 'batch norm')}{stay}"
    yield "folded", count if report.norms else "nothing: there are no batch norms"
    for title, (reason, names) in zip(_titles("left"), grouped(report.left), strict=False):
        yield title, f"{len(names)}: {reason} ({_listed(names)})"
    if any(each.reason.endswith(_UNSEEN) for each in report.left):
        yield "try", "--assume-traced folds these too, if your data never takes another way"
    if report.merged:
        yield "merged", f"{counted(report.merged, 'block')} of parallel branches"
    methods = Counter(step.method for step in report.steps if isinstance(step, Own))
    for title, (method, number) in zip(_titles("own"), methods.items(), strict=False):
        yield title, f"{counted(number, 'module')} by a {method}() of their own"


_UNSEEN = ("and did not run", "may do otherwise with others")


def _titles(first: str) -> Iterator[str]:
    """The title on the first line alone."""
    yield first
    while True:
        yield ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f", and {more} more" if more > 0 else "")


def _costs(report: FusionReport) -> Table:
    table = columns("", "before", "after")
    for title, name in _OPERATIONS.items():
        before, after = (getattr(operations, name) for operations in report.operations)
        if before or after:
            _add_row(table, title, f"{before:,}", f"{after:,}")
    _add_row(table, "parameters", *map(_count, report.parameters))
    _add_row(table, "MACs", *map(_count, report.macs))
    if report.latency is not None:
        both = report.latency.before_seconds, report.latency.after_seconds
        _add_row(table, "latency", *(_seconds(median) for median, _, _ in both))
        _add_row(table, "95 % interval", *(_interval(times) for times in both))
    return table


_OPERATIONS = {
    "convolutions": "convolutions",
    "linear": "linears",
    "batch norms": "norms",
    "additions": "additions",
    "operations in all": "total",
}
assert set(_OPERATIONS.values()) == set(Operations.__dataclass_fields__)


def _proof(report: FusionReport) -> Iterator[tuple[str, str]]:
    if report.latency is not None:
        runs = f"{report.latency.runs} runs in turn on {counted(report.latency.threads, 'thread')}"
        median, interval = _speed(report.latency)
        _, low, high = report.latency.speedup
        told = f"{median} times as fast ({interval})"
        if low <= 1 <= high:
            told = f"no difference to be seen ({interval} times as fast)"
        yield "speed", f"{told}, {runs}"
    agree = " and ".join(report.provers)
    problem = f"; {report.export_problem}" if report.export_problem else ""
    yield "proof", f"{agree} agree" if len(report.provers) > 1 else f"{agree} alone{problem}"
    yield from zip(_titles("tried"), report.trials, strict=False)
    yield "error", _error(report.difference)
    if report.unfused is not None:
        fused, plain = (_digits(each.rms) for each in (report.difference, report.unfused))
        yield (
            "rms",
            f"{fused}, without fusing {plain}, against the model computed with twice the bits",
        )


def _error(found: Difference) -> str:
    text = f"at most {_digits(found.max_abs)}, {_digits(found.relative)} of the output's spread"
    text += f"; cosine {found.cosine:.7g}"
    if found.top1 is not None:
        text += f"; top-1 the same in {_percent(found.top1)} of {counted(found.rows, 'row')}"
    return text


def _percent(share: float) -> str:
    """Never 100% where something differs."""
    return f"{100 * share:.4g}%" if share == 1 or share < 0.9999 else "over 99.99%"


def _variants(variants: Sequence[Variant]) -> Table:
    table = columns("option", "times as fast", "rms error", "without fusing", "top-1")
    for variant in variants:
        problem = f": {variant.problem}" if variant.problem else ""
        speed = "{} ({})".format(*_speed(variant.latency)) if variant.latency else ""
        found = variant.difference
        errors = ("" if each is None else _digits(each.rms) for each in (found, variant.plain))
        top1 = "" if found is None or found.top1 is None else _percent(found.top1)
        _add_row(table, f"{variant.name}{problem}", speed, *errors, top1)
    return table


def _files(written: Sequence[Written]) -> Iterator[tuple[str, str]]:
    for title, file in zip(_titles("written"), written, strict=False):
        yield title, file.note
    for title, file in zip(_titles("load it"), written, strict=False):
        yield title, file.line


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(escaped(cell)) for cell in cells))


def _digits(value: float) -> str:
    """Two digits of a small number, as many as an error is good for."""
    return f"{value:.1e}" if value else "0"


def _count(value: float) -> str:
    """Three digits and a prefix: `11.7 M`; small numbers in full."""
    prefixes = iter(_PREFIXES)
    prefix = next(prefixes)
    while abs(value) >= 999.5:
        value, prefix = value / 1000, next(prefixes)
    return f"{value:#.3g} {prefix}".replace(". ", " ") if prefix else f"{value:.0f}"


def _seconds(value: float) -> str:
    size, unit = next((each for each in _TIMES if value >= each[0]), _TIMES[-1])
    return f"{_figure(value / size)} {unit}"


def _figure(value: float) -> str:
    """Three digits without an exponent: `12,300`, `19.4`, `0.0620`."""
    text = f"{value:#.3g}"
    return f"{float(text):,.0f}" if value >= 99.95 else text


def _interval(times: tuple[float, float, float]) -> str:
    low, high = map(_seconds, times[1:])
    return (
        f"{low} to {high}" if low.split()[1] != high.split()[1] else f"{low.split()[0]} to {high}"
    )


def _speed(latency: Latency) -> tuple[str, str]:
    median, low, high = map(_figure, latency.speedup)
    return median, f"{low} to {high}"
