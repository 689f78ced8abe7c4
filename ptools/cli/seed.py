"""`ptools seed`."""

from typing import Annotated, Literal

import typer

from ptools.cli.options import JsonOption
from ptools.errors import UsageError

EXAMPLES = """\b
Examples:
  ptools seed examples/seed.py
  ptools seed env
"""
# All that follows SCRIPT is the script's own.
SETTINGS = {"allow_interspersed_args": False, "ignore_unknown_options": False}
LARGEST = 2**32 - 1
MODES = Literal["strict", "warn", "off"]


def seed(
    script: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SCRIPT [ARGS]... | env",
            show_default=False,
            help="A script and its arguments: all that follows is the script's. env shows what is "
            "set in this environment instead; a script of that name is ./env.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST, help="For all generators, on all ranks.")
    ] = 1029,
    deterministic: Annotated[
        MODES,
        typer.Option(
            help="warn: deterministic operations where torch has them, the others named at the "
            "end with their lines; any script runs to its end, so it is the default. strict: "
            "the others raise, and TF32 is off. off: as fast as ever; only seeded.",
        ),
    ] = "warn",
    module: Annotated[
        bool, typer.Option("--module", "-m", help="SCRIPT is a module, as for python -m.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Run a script seeded: the same numbers in each run.

    Sets what Python and CUDA read as they start, then becomes the script: its signals, input and
    exit code are its own. Seeds Python, NumPy and torch on every device, DataLoader workers, the
    NumPy Generators in their datasets, and those that the script makes without a seed. What could
    not be set is said on stderr.
    """
    words = list(script or ())
    words = words[1:] if words[:1] == ["--"] else words
    if not words:
        raise UsageError("no script is given", hint="ptools seed train.py --its options")
    if words[0] == "env" and not module:
        _show(words[1:], seed, deterministic, json)
        return
    if json:
        raise UsageError("--json is for ptools seed env", hint="leave it out to run a script")
    from ptools import console
    from ptools.repro.seeding.start import start

    start(words[0], words[1:], seed=seed, mode=deterministic, module=module, say=console.note)


def _show(words: list[str], seed: int, mode: MODES, json: bool) -> None:
    if words not in ([], ["--json"]):
        raise UsageError(
            f"env takes no {words[0]}", hint="ptools seed env --json, or ./env for a script"
        )
    import torch  # noqa: F401  # whose flags are to be shown

    from ptools import console
    from ptools.repro.seeding.render import page
    from ptools.repro.seeding.settings import settings

    found = settings(seed, mode)
    if json or words:
        console.show_json("seed env", {"settings": [one.to_dict() for one in found]})
    else:
        console.show(page(found))
