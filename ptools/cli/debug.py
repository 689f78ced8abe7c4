"""`ptools debug`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

EXAMPLES = """\b
Examples:
  ptools debug examples/debug.py
  ptools debug --mode inplace examples/debug.py --lr 0.1
"""
# All that follows SCRIPT is the script's own.
SETTINGS = {"allow_interspersed_args": False, "ignore_unknown_options": False}
MODES = Literal["watch", "nan", "inplace", "autograd", "memory"]


def debug(
    script: Annotated[
        list[str],
        typer.Argument(
            metavar="SCRIPT [ARGS]...",
            show_default=False,
            help="A script and its arguments: all that follows is the script's.",
        ),
    ],
    mode: Annotated[
        MODES,
        typer.Option(
            help="watch: next to free, and runs the script again, traced, when a loss or gradient "
            "is not finite or torch finds an in-place change. nan, inplace: traced from the start. "
            "autograd: gradients that never come, graphs that grow. memory: who holds it.",
        ),
    ] = "watch",
    at_step: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Trace from this step on, without watching it first."
        ),
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
        typer.Option(metavar="DIR", help="Write the histograms of mode autograd, or memory."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the findings as JSON too.")
    ] = None,
) -> int:
    """The line of the first NaN, or of an in-place bug.

    Runs the script as it is. When a loss or a gradient is not finite, it is run again from the
    same seed, traced from just before that step, and the report names the operation, its line and
    what went in: what the script writes, it writes again. Exit code 3: something was found; else
    the script's own.
    """
    from ptools import console
    from ptools.debug.engine import debug_script
    from ptools.debug.render import page

    words = script[1:] if script[:1] == ["--"] else script
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
    console.show(page(report))
    return report.exit_code
