"""The one place that prints: the result on stdout, everything else on stderr."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ptools import __version__

# Rich is imported in the function bodies: `ptools --help` does without it.
if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_UNBOUNDED = 10_000  # columns; wider than any table


class Advance(Protocol):
    """Move a progress bar on, and optionally say what is being done now, and of how much."""

    def __call__(
        self, amount: float = 1, description: str | None = None, total: float | None = None
    ) -> None: ...


def show(renderable: "RenderableType") -> None:
    """Print a Rich renderable as the result.

    On a terminal it fits the width. Elsewhere (a file, a pipe) there are no escape codes and the
    page is as wide as the content wants, so that nothing is cropped.
    """
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not sys.stdout.isatty():
        wide = console.options.update(width=_UNBOUNDED)
        console.width = max(80, console.measure(renderable, options=wide).maximum)
    with console.capture() as capture:
        console.print(renderable)
    lines = capture.get().splitlines()
    write("".join(f"{line.rstrip()}\n" for line in lines))


def write(text: str) -> None:
    """Write `text` to stdout as it is; what the encoding lacks is written as `\\uXXXX`."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def escaped(text: str) -> str:
    """A text of somebody else's without what a terminal would take as a command."""
    return text if text.isprintable() else repr(text)[1:-1]


def counted(count: int, noun: str, plural: str = "") -> str:
    """`1 image`, `1,024 images`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def document(command: str, payload: Mapping[str, Any]) -> str:
    """The JSON object of `--json`: our version, the command, the schema, the payload."""
    whole = {"ptools": __version__, "command": command, "schema": 1, **payload}
    return json.dumps(whole, indent=2, allow_nan=False) + "\n"


def show_json(command: str, payload: Mapping[str, Any]) -> None:
    """Print the one JSON object of `--json`."""
    write(document(command, payload))


def note(text: str) -> None:
    """Tell the user something on stderr."""
    _stderr().print(text)


def warn(text: str) -> None:
    """Warn the user on stderr."""
    _label("warning", "bold yellow", text)


def error(message: str, hint: str | None = None) -> None:
    """Say on stderr what is wrong and, if known, what to do about it."""
    _label("error", "bold red", message)
    if hint:
        _label("hint", "bold cyan", hint)


def error_json(message: str, hint: str | None = None) -> None:
    """Say the same as one JSON object on one line of stderr."""
    print(json.dumps({"error": {"message": message, "hint": hint}}), file=sys.stderr)


def has_progress() -> bool:
    """Whether `progress` shows anything: stderr is a terminal."""
    return sys.stderr.isatty()


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Advance]:
    """Show a bar on stderr (a pulse without `total`) while the block runs, then clear it.

    Yields a function that moves the bar on. Nothing is shown when stderr is not a terminal.

        with progress("reading", total=len(files)) as advance:
            for file in files:
                read(file)
                advance()
    """
    from rich.progress import Progress

    bars = Progress(console=_stderr(), transient=True, disable=not has_progress())
    with bars:
        task = bars.add_task(description, total=total)

        def advance(
            amount: float = 1, description: str | None = None, total: float | None = None
        ) -> None:
            bars.update(task, advance=amount, description=description, total=total)

        yield advance


def abandon_stdout() -> None:
    """Send what is left of stdout nowhere, for when its reader has gone (`ptools ... | head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stderr() -> "Console":
    from rich.console import Console

    # Soft wrap: the terminal breaks long lines, so a command to copy stays in one piece.
    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def _label(label: str, style: str, text: str) -> None:
    from rich.text import Text

    _stderr().print(Text.assemble((f"{label}:", style), " ", text))
