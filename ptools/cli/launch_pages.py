"""Running a script with `ptools launch`, which needs no Typer."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptools.launcher.report import LaunchResult


def run(words: Sequence[str], **options: Any) -> int:
    """Launch a script, and say on stderr how it ended."""
    from ptools.launcher.engine import launch

    result = launch(words[0], words[1:], say=_note, **options)
    show(result)
    return result.exit_code


def show(result: "LaunchResult") -> None:
    """Say on stderr how a run ended, if there is anything to say."""
    if result.exit_code or result.where or result.warnings:
        from ptools.launcher.render import page

        if sys.stderr is not None:  # closed before we started
            sys.stderr.write(page(result))


def _note(text: str) -> None:
    from ptools import console

    console.note(text)


def plain(words: Sequence[str]) -> tuple[Sequence[str], dict[str, Any]] | None:
    """The script's words and the options, if these are but --gpus, -n and -m; else None."""
    options: dict[str, Any] = {}
    while words and words[0].startswith("-"):
        match words:
            case ["--gpus", value, *words]:
                options["gpus"] = value
            case ["-n" | "--procs", value, *words] if value.isdecimal() and int(value):
                options["procs"] = int(value)
            case ["-m" | "--module", *words]:
                options["module"] = True
            case _:
                return None
    return (words, options) if words else None
