"""A profile as runs that TensorBoard shows: a sweep of settings, curves over workers, and a page.

Each trial is a run of its own: `w4_b128_p2` has 4 workers, batches of 128 and a prefetch factor
of 2. The runs `measured` and `predicted` hold the curves. The step of a scalar is the number of
workers, so that the trials are dots on them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ptools.console import counted
from ptools.errors import UsageError
from ptools.events import event_file
from ptools.loader_profile.report import LoaderProfile, Settings, Stage, Trial
from ptools.loader_profile.tables import MILLI, figure, interval

_RATE = "rate_per_s"
_WAITS = ["wait_p50_ms", "wait_p95_ms", "wait_p99_ms"]
_FLAGS = ("persistent_workers", "pin_memory", "in_order")
_METRICS = [_RATE, "wait_p95_ms", "startup_s", "stall"]  # the columns of the sweep

Dated = tuple[int, Any]  # a step and a `Summary`


def write_tensorboard(profile: LoaderProfile, folder: Path) -> None:
    """Write a profile as new runs in a folder; `tensorboard --logdir FOLDER` shows them.

    Raises:
        UsageError: the folder holds a run of one of these names, or cannot be written to.
    """
    trials = _distinct(profile)
    runs = {_name(trial.settings): _sweep(trial, trials, profile) for trial in trials}
    runs["measured"] = [*_measured(trials, profile), *_page(trials, profile)]
    if profile.predicted:
        rates = sorted(profile.predicted.items())
        runs["predicted"] = [_scalar(_RATE, rate, workers) for workers, rate in rates]
    for name in runs:
        if (folder / name).exists():
            raise UsageError(
                f"{folder} already holds a run {name}", hint="name another folder, existing or not"
            )
    for name, summaries in runs.items():
        with event_file(folder / name) as add:
            for step, summary in summaries:
                add(step=step, summary=summary)


def _distinct(profile: LoaderProfile) -> list[Trial]:
    """One trial for each of the settings, by settings; the current ones and the best count most."""
    runs = [*profile.trials, profile.best, profile.current]
    chosen = {trial.settings: trial for trial in runs if trial is not None}
    return [chosen[settings] for settings in sorted(chosen, key=_order)]


def _order(settings: Settings) -> tuple[int, ...]:
    return tuple(int(value or 0) for value in asdict(settings).values())


def _name(settings: Settings) -> str:
    """`w4_b128_p2`, and what is not as DataLoader has it by default."""
    words = [f"w{settings.num_workers}"]
    if settings.batch_size is not None:
        words.append(f"b{settings.batch_size}")
    words.append(f"p{settings.prefetch_factor or 0}")
    if settings.persistent_workers:
        words.append("persistent")
    if settings.pin_memory:
        words.append("pinned")
    if not settings.in_order:
        words.append("unordered")
    return "_".join(words)


def _sweep(trial: Trial, trials: Sequence[Trial], profile: LoaderProfile) -> list[Dated]:
    """A trial as a row of the sweep."""
    from torch.utils.tensorboard.summary import hparams

    rows = [_hyperparameters(other.settings) for other in trials]
    domains = {name: sorted({row[name] for row in rows}) for name in rows[0]}
    # TensorBoard shows five columns at first: a flag that is always the same shall take none.
    names = [name for name in domains if name not in _FLAGS or len(domains[name]) > 1]
    domains = {name: domains[name] for name in names}
    values = {name: _hyperparameters(trial.settings)[name] for name in names}
    figures = _figures(trial, profile)
    metrics = {tag: figures[tag] for tag in _METRICS if tag in figures}
    summaries = [(0, summary) for summary in hparams(values, metrics, domains)]
    return [*summaries, *_scalars(trial, profile)]


def _hyperparameters(settings: Settings) -> dict[str, Any]:
    """Without a batch size if there is none; a flag is a word, or it would be shown as 1.0000."""
    values = {**asdict(settings), "prefetch_factor": settings.prefetch_factor or 0}
    return {
        name: str(value) if isinstance(value, bool) else value
        for name, value in values.items()
        if value is not None
    }


def _figures(trial: Trial, profile: LoaderProfile) -> dict[str, float]:
    wait = trial.wait
    waits = [seconds * MILLI for seconds in (wait.p50, wait.p95, wait.p99)]
    figures = {_RATE: trial.rate, **dict(zip(_WAITS, waits, strict=True))}
    figures["startup_s"] = trial.startup
    if profile.with_step is not None:
        figures["stall"] = _stall(trial, profile.with_step.step)
    return figures


def _stall(trial: Trial, step: float) -> float:
    """The share of its time that a consumer waits, as the rate lets one expect."""
    return max(0.0, 1 - step * trial.rate / trial.batch_samples)


def _scalars(trial: Trial, profile: LoaderProfile) -> list[Dated]:
    workers = trial.settings.num_workers
    return [_scalar(tag, value, workers) for tag, value in _figures(trial, profile).items()]


def _scalar(tag: str, value: float, step: int) -> Dated:
    from torch.utils.tensorboard.summary import scalar

    return step, scalar(tag, value)


def _measured(trials: Sequence[Trial], profile: LoaderProfile) -> Iterator[Dated]:
    """The trials that differ from the current settings by nothing but the number of workers."""
    for trial in trials:
        workers = trial.settings.num_workers
        if trial.settings == profile.current.settings.with_workers(workers):
            yield from _scalars(trial, profile)


def _page(trials: Sequence[Trial], profile: LoaderProfile) -> Iterator[Dated]:
    """The report in words and tables, and the charts of the tab "custom scalars"."""
    from torch.utils.tensorboard.summary import custom_scalars, text

    yield 0, text("profile", "\n\n".join(_paragraphs(trials, profile)))
    p50, p95, p99 = _WAITS
    charts = {  # of a kind that TensorBoard does not smooth, with or without a margin
        "samples/s, by workers": ["Margin", [_RATE, _RATE, _RATE]],
        "wait in ms, by workers: p95 and p50 to p99": ["Margin", [p95, p50, p99]],
    }
    yield 0, custom_scalars({"DataLoader": charts})


def _paragraphs(trials: Sequence[Trial], profile: LoaderProfile) -> Iterator[str]:
    """The page in Markdown."""
    yield f"**{_plain(profile.target or 'the loader')}**, {counted(profile.cores, 'core')}"
    if profile.interrupted:
        yield "**Interrupted**: this is what had been measured so far."
    if (verdict := profile.verdict) is not None:
        name = _plain(f"{verdict.kind} {verdict.part or ''}".rstrip())
        yield f"**{name}**: {_plain(verdict.evidence)}. To do: {_plain(verdict.action)}"
    if profile.advice is not None:
        yield f"`DataLoader(..., {profile.advice.settings.arguments()})`"
    if (stepped := profile.with_step) is not None:
        times = f"a step of {stepped.step * MILLI:g} ms waits {stepped.stall:.1%} of its time"
        yield f"Measured with the current settings: {times}."
    if profile.warnings:
        yield "\n".join(f"* {_plain(warning)}" for warning in profile.warnings)
    if profile.stages:
        yield "### Where the time of a worker goes"
        yield _stages_table(profile.stages)
        if profile.clocks == 2:
            yield "This system does not tell ready from waiting: both count as waiting."
    yield "### What was measured"
    yield _trials_table(trials, profile)
    yield (
        "The curves by number of workers are under Custom Scalars. In the other tabs the number "
        "of workers is the step; set the smoothing to 0 there."
    )


def _stages_table(stages: Sequence[Stage]) -> str:
    titles = ["stage", "kind", "calls a sample", "run, ms", "ready, ms", "waiting, ms"]
    rows = []
    for stage in stages:
        clocks = [figure(seconds * MILLI) for seconds in (stage.run, stage.ready, stage.waiting)]
        without = "" if stage.without is None else figure(stage.without)
        rows.append([_plain(stage.name), stage.kind, f"{stage.calls:.3g}", *clocks, without])
    return _table([*titles, "samples/s without it"], rows)


def _trials_table(trials: Sequence[Trial], profile: LoaderProfile) -> str:
    titles = ["run", "", "samples/s", "95 % interval", "wait p50, p95, p99, ms", "start-up, s"]
    rows = []
    for trial in trials:
        figures = _figures(trial, profile)
        row = [_plain(_name(trial.settings)), _role(trial, profile)]
        row += [figure(trial.rate), interval(trial)]
        waits = ", ".join(figure(figures[tag]) for tag in _WAITS)
        stall = [f"{figures['stall']:.1%}"] if "stall" in figures else []
        rows.append([*row, waits, figure(trial.startup), *stall])
    return _table([*titles, "stall by the rate"] if profile.with_step else titles, rows)


def _role(trial: Trial, profile: LoaderProfile) -> str:
    if trial.settings == profile.current.settings:
        return "now"
    advised = profile.advice is not None and trial.settings == profile.advice.settings
    return "best" if advised else ""


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---"] * len(titles)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [titles, rule, *rows])


def _plain(text: str) -> str:
    """A text of somebody else's on one line, without what Markdown would take for its own."""
    line = " ".join(text.split())
    return "".join(f"&#{ord(sign)};" if sign in "\\`*_{}[]<>&#|~" else sign for sign in line)
