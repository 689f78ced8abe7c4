"""Arguments and options that commands share."""

from typing import Annotated

import typer

TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        show_default=False,
        help="model.py[:NAME], package.module[:NAME], timm:NAME, torchvision:NAME, or a local "
        "Hugging Face folder; NAME may carry arguments: 'model.py:Net(width=64)'. "
        "Loading it runs the code in it.",
    ),
]
ArgumentsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        "-a",
        metavar="KEY=VALUE",
        allow_from_autoenv=False,
        help="Argument for the target's class or function; may be repeated.",
    ),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="An input of the forward, as 3x224x224 or ids=1x128:int64; may be repeated.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Replace a file that exists.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")
]
