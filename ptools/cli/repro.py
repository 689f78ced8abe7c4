"""`ptools repro`."""

from pathlib import Path
from typing import Annotated

import typer

from ptools.cli.options import JsonOption
from ptools.errors import UsageError

EXAMPLES = """\b
Examples:
  ptools repro examples/repro.py
  ptools repro --perturb fs examples/repro.py --sorted
"""
# All that follows SCRIPT is the script's own.
SETTINGS = {"allow_interspersed_args": False, "ignore_unknown_options": False}


def repro(
    script: Annotated[
        list[str],
        typer.Argument(
            metavar="SCRIPT [ARGS]...",
            show_default=False,
            help="A script and its arguments: all that follows is the script's.",
        ),
    ],
    perturb: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="What the second run has otherwise: hash (the seed of hash()), fs (the order of "
            "folders' entries), threads (their number), time (the clock); or none.",
        ),
    ] = "hash,fs",
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="End each run after so many steps.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare each operation all along; slow.")
    ] = False,
    module: Annotated[
        bool, typer.Option("--module", "-m", help="SCRIPT is a module, as for python -m.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """The first line at which two runs differ.

    Runs the script twice as it is, the second time with what a run must not depend on changed on
    purpose, and compares batches, losses and parameters bit for bit. Where they part, both are run
    again up to there, and the report names the operation, its line and why. Exit code 3: the runs
    part; else the script's own.
    """
    words = script[1:] if script[:1] == ["--"] else script
    if not words:
        raise UsageError("no script is given", hint="ptools repro train.py --its options")
    from ptools import console
    from ptools.repro.engine import repro_script
    from ptools.repro.render import page

    report = repro_script(
        words[0],
        words[1:],
        module=module,
        perturb=[] if perturb == "none" else [name.strip() for name in perturb.split(",")],
        steps=steps,
        exact=exact,
        say=console.note,
    )
    if json:
        console.show_json("repro", report.to_dict())
    else:
        console.show(page(report))
    return report.exit_code
