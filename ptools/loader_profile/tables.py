"""The tables of a page: stages with bars, rates by setting, source lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ptools.console import counted, escaped
from ptools.files import shown_path
from ptools.loader_profile.report import Line, LoaderProfile, Stage, Trial
from ptools.tables import columns

_BAR = 8  # cells
_UNKNOWN = 10  # times the rate: an upper end that says nothing
MILLI = 1e3


def figure(value: float) -> str:
    """Three digits, as many as a measurement is good for: `12,300`, `19.4`, `0.062`."""
    rounded = float(f"{value:.3g}")
    size = math.floor(math.log10(abs(rounded))) if rounded else 3
    return f"{rounded:,.{min(max(2 - size, 0), 3)}f}"


def interval(trial: Trial) -> str:
    """The 95 % interval of the rate."""
    if trial.high > _UNKNOWN * trial.rate:
        return f"from {counted(trial.batches, 'batch', 'batches')} only"
    return f"{figure(trial.low)} to {figure(trial.high)}"


def batch_size(trial: Trial) -> str:
    """The samples of a batch, which are a mean where batches differ."""
    samples = trial.batch_samples
    return f"{samples:,.0f}" if samples == int(samples) else figure(samples)


def stages(profile: LoaderProfile) -> Table:
    """Where the time of a worker goes; what it was ready for a core says nothing of the work."""
    three = profile.clocks == 3
    times = ("run", "ready", "waiting") if three else ("run", "waiting")
    table = columns("stage, ms per sample", *times, "share", "without it")
    table.columns[-2].justify = "left"
    whole = sum(stage.run + stage.waiting for stage in profile.stages)
    for stage in profile.stages:
        cells = (Text(figure(getattr(stage, name) * MILLI)) for name in times)
        share = (stage.run + stage.waiting) / whole if whole else 0.0
        without = "" if stage.without is None else f"{figure(stage.without)}/s"
        table.add_row(Text(_label(stage)), *cells, _Share(share), Text(without))
    return table


def _label(stage: Stage) -> str:
    named = stage.name.startswith(stage.kind)
    return escaped(stage.name if named else f"{stage.kind}: {stage.name}")


class _Share:
    """A part of the whole as a bar, in plain ASCII where the terminal has no more."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(_BAR + 5, _BAR + 5)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        bar = ("#" if options.ascii_only else "█") * round(self.share * _BAR)
        yield Text(f"{bar:{_BAR}}{self.share:5.0%}", style="cyan")


def rates(profile: LoaderProfile) -> Iterator[Table]:
    """By number of workers, and by size of the batch, if several were tried."""
    runs = [*profile.trials, profile.current, *([profile.best] if profile.best else [])]
    measured = list({run.settings: run for run in runs}.values())  # the last word on each
    size = profile.current.settings.batch_size
    ours = [run for run in measured if run.settings.batch_size == size]
    if len(ours) > 1 or profile.predicted:
        yield _by_workers(profile, ours)
    if len(measured) > len(ours):
        yield _by_batch_size(profile, measured)


def _by_workers(profile: LoaderProfile, measured: list[Trial]) -> Table:
    """What was measured, and the predictions for powers of two."""
    table = _rates("workers", "predicted")
    seen = {trial.settings.num_workers for trial in measured}
    knee = _knee(profile)
    unseen = [n for n in profile.predicted if n & (n - 1) == 0 and n <= knee and n not in seen]
    rows: list[tuple[int, Trial | None]] = [(n, None) for n in unseen]
    rows += [(trial.settings.num_workers, trial) for trial in measured]
    for workers, trial in sorted(rows, key=lambda row: row[0]):
        predicted = profile.predicted.get(workers)
        expected = "" if predicted is None else figure(predicted)
        _add_row(table, str(workers), expected, *_measured(profile, trial))
    return table


def _knee(profile: LoaderProfile) -> int:
    """The number of workers from which on the model promises no more."""
    most = max(profile.predicted.values(), default=0.0)
    return next((n for n, rate in profile.predicted.items() if rate >= 0.99 * most), 0)


def _by_batch_size(profile: LoaderProfile, measured: list[Trial]) -> Table:
    """The fastest of each size, and the current settings."""
    table = _rates("batch size", "workers")
    fastest: dict[float, Trial] = {}
    for trial in sorted(measured, key=lambda trial: trial.rate):
        fastest[trial.batch_samples] = trial
    rows = {trial.settings: trial for trial in (profile.current, *fastest.values())}
    for trial in sorted(rows.values(), key=lambda trial: trial.batch_samples):
        workers = str(trial.settings.num_workers)
        _add_row(table, batch_size(trial), workers, *_measured(profile, trial))
    return table


def _rates(*first: str) -> Table:
    table = columns(*first, "samples/s", "95 % interval", "")
    table.columns[0].justify = "right"
    table.columns[-1].justify = "left"
    return table


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))


def _measured(profile: LoaderProfile, trial: Trial | None) -> tuple[str, str, str]:
    """The rate of a row, its interval, and what else there is to say."""
    if trial is None:
        return "", "", ""
    settings, now = trial.settings, profile.current.settings
    advised = profile.advice.settings.num_workers if profile.advice else now.num_workers
    remarks = {
        "now": settings == now,
        "best": now != settings == now.with_workers(advised),
        f"about {figure(trial.quiet_rate)} if idle": trial.quiet_rate > 1.05 * trial.rate,
        f"prefetch_factor={settings.prefetch_factor}": (settings.prefetch_factor or 2) != 2,
        "in_order=False": not settings.in_order,
    }
    said = ", ".join(remark for remark, holds in remarks.items() if holds)
    return figure(trial.rate), interval(trial), said


def lines(found: Iterable[Line]) -> Table:
    """The source lines that take a worker's time."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("line", overflow="fold")
    table.add_column("source", overflow="fold")
    for line in found:
        place = escaped(f"{shown_path(line.file)}:{line.line}")
        _add_row(table, f"{line.share:.0%}", place, escaped(line.source.strip()))
    return table
