"""`ptools profile-loader`."""

import math
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptools.cli.options import ArgumentsOption, ForceOption, JsonOption
from ptools.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from ptools.loader_profile import LoaderProfile

EXAMPLES = """\b
Examples:
  ptools profile-loader examples/profile_loader.py --step-ms 50 --budget 3
  ptools profile-loader examples/profile_loader.py:make_loader --budget 3
"""
TOO_SLOW = 3
INTERRUPTED = 130
_MOST = 9999  # workers, or samples in a batch
_NUMBERS = re.compile(r"(?P<first>\d{1,9})(-(?P<last>\d{1,9}))?")


def profile_loader(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            show_default=False,
            help="train.py[:NAME] or package.module[:NAME]: a DataLoader, a Dataset, or a "
            "function that makes one, which may carry arguments: "
            "'train.py:make_loader(batch_size=64)'. Loading it runs the code in it.",
        ),
    ],
    arguments: ArgumentsOption = None,
    step_ms: Annotated[
        float | None,
        typer.Option(metavar="MS", help="What a training step takes: how long would it wait?"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="Measure the training step of this model instead."),
    ] = None,
    workers: Annotated[
        str, typer.Option(metavar="LIST", help="Numbers of workers to try, as 0-8 or 0,2,4.")
    ] = "auto",
    batch_sizes: Annotated[
        str | None, typer.Option(metavar="LIST", help="Batch sizes to try too, as 64,128.")
    ] = None,
    budget: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long it may take, about.")
    ] = 60.0,
    cold: Annotated[
        bool, typer.Option("--cold", help="Drop the dataset's files from the page cache first.")
    ] = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="Name the source lines that take the time.")
    ] = False,
    min_rate: Annotated[
        float | None,
        typer.Option(metavar="N", help="Exit with code 3 below N samples/s."),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a run for each setting, for TensorBoard."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what each worker did when, as a Chrome trace."),
    ] = None,
    force: ForceOption = False,
    json: JsonOption = False,
) -> int:
    """What holds a DataLoader back, and the settings to paste.

    Measures the loader as it is, in processes of their own: the rate, the share of each transform,
    and the rate with other numbers of workers. A file that trains when it is imported would train
    now: keep that under `if __name__ == "__main__":`, or name a function that makes the loader.
    Exit code 3: the rate is below --min-rate.
    """
    for option, value in (("step-ms", step_ms), ("budget", budget), ("min-rate", min_rate)):
        _check_positive(option, value)
    if step_ms is not None and model is not None:
        raise UsageError("--step-ms and --model exclude each other", hint="give one of them")
    settings: dict[str, Any] = {
        "step_ms": step_ms,
        "workers": None if workers == "auto" else _numbers("workers", workers, 0),
        "batch_sizes": _numbers("batch-sizes", batch_sizes, 1) if batch_sizes else (),
        "budget": budget,
        "cold": cold,
        "lines": lines,
    }
    _check_outputs(tensorboard, trace, force)
    profile = _profile(target, arguments or [], model, settings)
    try:  # a disk that is full must not cost the page
        _write(profile, tensorboard, trace, force)
    finally:
        _show(profile, json)
    return INTERRUPTED if profile.interrupted else _check_rate(profile, min_rate)


def _check_positive(option: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UsageError(f"--{option} {value:.15g} is not above 0", hint=f"write --{option} 50")


def _numbers(option: str, text: str, least: int) -> tuple[int, ...]:
    """Read `0-8` or `0,2,4`, in order and each once."""
    found: set[int] = set()
    hint = f"write --{option} 0-8 or 0,2,4" if option == "workers" else f"write --{option} 64,128"
    for word in text.split(","):
        match = _NUMBERS.fullmatch(word.strip())
        if match is None:
            raise UsageError(f"cannot read --{option} {text}", hint=hint)
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if not least <= first <= last <= _MOST:
            raise UsageError(
                f"--{option} {text}: numbers go up, from {least} to {_MOST:,} at most", hint=hint
            )
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def _check_outputs(tensorboard: Path | None, trace: Path | None, force: bool) -> None:
    """Refuse before anything runs what would be refused when it is written."""
    from ptools.files import atomic_write

    if tensorboard is not None and tensorboard.exists() and not tensorboard.is_dir():
        raise UsageError(f"{tensorboard} is a file", hint="name a folder, existing or not")
    if tensorboard is not None and (tensorboard / "measured").exists():
        raise UsageError(
            f"{tensorboard} already holds a profile", hint="name another folder, existing or not"
        )
    if trace is not None:
        with suppress(FileNotFoundError), atomic_write(trace, force):
            pass  # nothing to place yet: only the destination is looked at


def _profile(
    target: str, arguments: list[str], model: str | None, settings: dict[str, Any]
) -> "LoaderProfile":
    from ptools import console
    from ptools.loader_profile import profile_loader
    from ptools.target import resolve_loader
    from ptools.usercode import quiet_stdout

    with console.progress(f"profiling {target}") as advance, quiet_stdout():
        found = resolve_loader(target, arguments)
        return profile_loader(
            found.build(),
            model=_model(model) if model else None,
            target=found.spec,
            progress=lambda text: advance(0, description=text),
            **settings,
        )


def _model(spec: str) -> "nn.Module":
    from torch import nn

    from ptools.target import resolve

    model = resolve(spec).build()
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"{spec} is no model but of type {type(model).__name__}", hint="write model.py:Net"
        )
    return model


def _write(
    profile: "LoaderProfile", tensorboard: Path | None, trace: Path | None, force: bool
) -> None:
    from ptools import console

    if tensorboard is not None:
        from ptools.loader_profile.tensorboard import write_tensorboard

        write_tensorboard(profile, tensorboard)
        console.note(f"look: tensorboard --logdir {shlex.quote(str(tensorboard))}")
    if trace is not None and (profile.spans or not profile.interrupted):
        from ptools.loader_profile.trace import write_trace

        write_trace(profile, trace, force)
        console.note(f"look: open {trace} at https://ui.perfetto.dev")


def _show(profile: "LoaderProfile", json: bool) -> None:
    from ptools import console
    from ptools.loader_profile.render import page

    for warning in profile.warnings:
        console.warn(console.escaped(warning))
    if json:
        console.show_json("profile-loader", profile.to_dict())
    else:
        console.show(page(profile))


def _check_rate(profile: "LoaderProfile", min_rate: float | None) -> int:
    from ptools import console
    from ptools.loader_profile.tables import figure, interval

    rate = profile.current.rate
    if min_rate is None or rate >= min_rate:
        return 0
    known = f"{figure(rate)} samples/s ({interval(profile.current)})"
    console.error(f"{known} is below --min-rate {min_rate:.15g}")
    return TOO_SLOW
