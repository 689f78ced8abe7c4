"""The tables that pages are made of."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from ptools.console import escaped


def facts_grid(facts: Iterable[tuple[str, str]]) -> Table:
    """A name and a text on each line; long texts are folded."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, text in facts:
        grid.add_row(Text(name), Text(escaped(text)))
    return grid


def columns(first: str, *others: str) -> Table:
    """An empty table that folds its first column if it must, and sets the others to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
