"""`ptools init`."""

from pathlib import Path
from typing import Annotated

import typer

from ptools.cli.options import ForceOption

EXAMPLES = """\b
Examples:
  ptools init train.py
  ptools init packed.py --data examples/shapes.lmdb
"""


def init(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", show_default=False, help="The script to write: NAME.py."),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="What it trains on unless told otherwise: a folder with a folder of images for "
            "each class, or an LMDB of one; examples/shapes by default.",
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write a training script to begin with.

    A short one, to be read and changed: a small ResNet on images by class, for one process or
    many, on CPUs or GPUs, with mixed precision, warm-up, checkpoints, --resume and TensorBoard.
    On examples/shapes it finds the class of all 6 held-out images, in seconds on a CPU.
    """
    from ptools import console
    from ptools.train.init import write_script

    script = write_script(file, data, force)
    width = max(len(command) for command, _ in script.commands)
    lines = [f"  {command:{width}}  {purpose}" for command, purpose in script.commands]
    console.write("\n".join([f"{script.file} is written; to go on:", *lines]) + "\n")
    if not script.has_data:
        console.note(f"there is no {script.data} here yet: --data of the script names another")
