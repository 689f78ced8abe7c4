"""A place as lines of a page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.text import Text

from ptools.console import escaped
from ptools.files import shown_path
from ptools.program.places import Place


def lines_of(place: Place) -> Iterator[RenderableType]:
    """Where a line is, its text, and the line of the user's that called it."""
    module = f", module {place.module}" if place.module else ""
    yield _text(f"{line_of(place)} in {place.function}{module}")
    yield _Source(escaped(place.source), escaped(place.part))
    if place.called_from is not None:
        outer = place.called_from
        yield _text(f"called from {line_of(outer)} in {outer.function}")
        yield _Source(escaped(outer.source), escaped(outer.part))


class _Source:
    """A line of source, with the expression in it underlined where the line need not be folded."""

    def __init__(self, source: str, part: str) -> None:
        self._source = source
        is_part = part != source and source.count(part) == 1
        self._marks = " " * source.index(part) + "^" * len(part) if part and is_part else ""

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text(self._source, overflow="fold")
        if self._marks and len(self._source) <= options.max_width:
            yield Text(self._marks)

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        width = max(1, len(self._source))
        return Measurement(min(width, 20), width).with_maximum(options.max_width)


def line_of(place: Place | None) -> str:
    """`train.py:12`; empty for None."""
    if place is None:
        return ""
    with suppress(OSError):  # the program may have deleted the current folder
        return f"{shown_path(place.file)}:{place.line}"
    return f"{place.file}:{place.line}"


def _text(text: str) -> Text:
    return Text(escaped(text), overflow="fold")
