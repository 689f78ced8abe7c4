"""The page of `ptools seed env`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from ptools.console import escaped
from ptools.repro.seeding.settings import Setting
from ptools.tables import columns

_LATER = "torch."


def page(settings: Sequence[Setting]) -> RenderableType:
    """Each setting on a line; then what to paste, and the command that does all of it."""
    table = columns("setting")
    for name in ("now", "wanted", "state", "what it does"):
        table.add_column(name, overflow="fold")
    for one in settings:
        table.add_row(one.name, escaped(one.now or "-"), one.wanted, one.state, one.what)
    open_ones = [one for one in settings if one.state != "in time"]
    shell = [one.line for one in open_ones if not one.name.startswith(_LATER)]
    lines = [one.line for one in open_ones if one.name.startswith(_LATER)]
    parts: list[RenderableType] = [table]
    if shell:
        parts += ["", "in the shell, before Python starts:", *_indented(shell)]
    if lines:
        parts += ["", "in the script, after import torch:", *_indented(lines)]
    done = len(settings) - len(open_ones)
    verdict = f"{done} of {len(settings)} in time"
    parts += ["", verdict if not open_ones else f"{verdict}; ptools seed SCRIPT sets all of them"]
    return Group(*parts)


def _indented(lines: Sequence[str]) -> list[Text]:
    return [Text(f"  {line}") for line in lines]
