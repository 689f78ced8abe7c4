"""How far two runs are from each other, as a table and as a sentence."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ptools.program.shown import line_of
from ptools.repro.fingerprints.tolerance import Errors, Worst


def growth(errors: Errors) -> RenderableType:
    """The largest relative errors by step, and where the largest is."""
    table = Table.grid(padding=(0, 3))
    for name in ("up to step", "loss", "gradients", "state"):
        table.add_column(Text(name), justify="right")
    table.add_row("up to step", "loss", "gradients", "state")
    for row in errors.rows:
        table.add_row(f"{row.step:,}", *map(_told, (row.loss, row.gradients, row.state)))
    parts: list[RenderableType] = [Text("relative errors", "bold"), Padding(table, (0, 0, 0, 2))]
    if errors.worst is not None:
        parts.append(Text(f"  largest: {_where(errors.worst)}"))
    if errors.unlike:
        parts.append(
            Text(
                "  note: the runs have other operations, as other versions and devices do: "
                "these were not compared one by one"
            )
        )
    return Group(*parts, "")


def within(errors: Errors, compared: str) -> str:
    """The verdict where no error is too large.

    Args:
        compared: what was compared, for runs that are equal bit for bit.
    """
    if errors.worst is None:
        return compared
    return f"the same within {errors.tolerance:g}: largest error {_where(errors.worst)}"


def _where(worst: Worst) -> str:
    where = f", {line_of(worst.place)}" if worst.place else ""
    return f"{worst.error:.1e} in {worst.name} at step {worst.step:,}{where}"


def _told(error: float | None) -> str:
    if error is None:
        return "-"
    return f"{error:.1e}" if error else "0"
