"""`ptools debug`."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ptools.cli.options import ForceOption
from ptools.errors import UsageError

if TYPE_CHECKING:
    from ptools.debug import DebugReport

EXAMPLES = """\b
Examples:
  ptools debug examples/debug.py
  ptools debug --mode inplace examples/debug.py --bug inplace
"""
# All that follows SCRIPT is the script's own.
SETTINGS = {"allow_interspersed_args": False, "ignore_unknown_options": False}
MODES = Literal["watch", "nan", "inplace", "autograd", "memory"]
ScriptArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SCRIPT [ARGS]...",
        show_default=False,
        help="A script and its arguments: all that follows is the script's.",
    ),
]
ModeOption = Annotated[
    MODES,
    typer.Option(
        help="watch: next to free, and runs the script again, traced, when a loss or gradient "
        "is not finite or torch finds an in-place change. nan, inplace: traced from the start. "
        "autograd: gradients that never come, graphs that grow. memory: who holds it.",
    ),
]


def debug(
    script: ScriptArgument,
    mode: ModeOption = "watch",
    at_step: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Trace for NaN from this step on, without a watch."),
    ] = None,
    no_rerun: Annotated[
        bool, typer.Option("--no-rerun", help="Do not run the script again.")
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Collect findings; do not stop at the first.")
    ] = False,
    module: Annotated[
        bool, typer.Option("--module", "-m", help="SCRIPT is a module, as for python -m.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed Python, NumPy and torch; drawn by default.")
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write what mode autograd or memory measures."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the findings as JSON too.")
    ] = None,
    force: ForceOption = False,
) -> int:
    """The line of the first NaN, or of an in-place bug.

    Runs the script as it is. When a loss or a gradient is not finite, it is run again from the
    same seed, traced from just before that step, and the report names the operation, its line and
    what went in: what the script writes, it writes again. Exit code 3: something was found; else
    the script's own.
    """
    words = script[1:] if script[:1] == ["--"] else script
    if not words:
        raise UsageError("no script is given", hint="ptools debug train.py --its options")
    _check(mode, at_step, no_rerun, tensorboard)
    _check_outputs(json, tensorboard, force)
    from ptools import console
    from ptools.debug.engine import debug_script
    from ptools.debug.render import page

    report = debug_script(
        words[0],
        words[1:],
        mode=mode,
        module=module,
        at_step=at_step,
        rerun=not no_rerun,
        keep_going=keep_going,
        seed=seed,
        tensorboard=str(tensorboard) if tensorboard else None,
        say=console.note,
    )
    try:  # a disk that is full must not cost the page
        if json is not None:
            _write(report, json, force)
    finally:
        console.show(page(report))
    return report.exit_code


def _check(mode: str, at_step: int | None, no_rerun: bool, tensorboard: Path | None) -> None:
    """Refuse options that would do nothing."""
    if at_step is not None and mode not in ("watch", "nan"):
        raise UsageError(f"--at-step is not for --mode {mode}", hint="add --mode nan")
    if no_rerun and (mode != "watch" or at_step is not None):
        raise UsageError("--no-rerun is for --mode watch", hint="only that runs the script again")
    if tensorboard is not None and mode not in ("autograd", "memory"):
        raise UsageError(
            f"--tensorboard is not for --mode {mode}", hint="add --mode autograd or memory"
        )


def _check_outputs(json: Path | None, tensorboard: Path | None, force: bool) -> None:
    """Refuse before anything runs what would be refused when it is written."""
    from ptools.files import atomic_write

    if json is not None:
        with suppress(FileNotFoundError), atomic_write(json, force):
            pass  # nothing to place yet: only the destination is looked at
    if tensorboard is not None and tensorboard.exists() and not tensorboard.is_dir():
        raise UsageError(f"{tensorboard} is a file", hint="name a folder, existing or not")


def _write(report: "DebugReport", file: Path, force: bool) -> None:
    from ptools import console
    from ptools.files import atomic_write

    with atomic_write(file, force) as temporary:
        temporary.write_text(console.document("debug", report.to_dict()), encoding="utf-8")
