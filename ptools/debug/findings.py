"""What a debug run found: plain data, which goes from process to process as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ptools.program.places import Place, place_from


@dataclass(frozen=True)
class TensorStats:
    """Numbers of one tensor; `min` and `max` are of its finite values, None if there are none."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    min: float | None
    max: float | None
    zeros: int
    nans: int
    infs: int
    where: tuple[int, ...] | None = None  # index of the first value that is not finite
    negative_infs: int = 0  # of `infs`


@dataclass(frozen=True)
class Finding:
    """One bug: what it is, the lines that make it, the evidence, and what to do.

    `places` are in the order in which a person wants to read them, each with its role: `made`,
    `forward`, `saved`, `changed`, `kept` ...
    """

    kind: str
    summary: str
    places: tuple[tuple[str, Place], ...] = ()
    facts: tuple[str, ...] = ()
    advice: str = ""
    op: str = ""
    step: int | None = None  # optimizer steps that were completed before
    tick: int | None = None  # backward calls that were begun before
    rank: int | None = None
    tensors: tuple[TensorStats, ...] = ()

    def place(self, role: str) -> Place | None:
        """The first place of a role."""
        return next((place for name, place in self.places if name == role), None)

    @property
    def where(self) -> Place | None:
        """The line to look at first."""
        return self.places[0][1] if self.places else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Table:
    """Numbers for the page and for JSON; units stand in the names of the columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]


def places_of(**roles: Place | None) -> tuple[tuple[str, Place], ...]:
    """Places by their roles, without those that are not known."""
    return tuple((role, place) for role, place in roles.items() if place is not None)


def finding_from(found: Mapping[str, Any]) -> Finding:
    """A finding from its JSON."""
    return Finding(
        **{
            **found,
            "places": tuple((role, place_from(place)) for role, place in found["places"]),
            "facts": tuple(found["facts"]),
            "tensors": tuple(_stats_from(stats) for stats in found["tensors"]),
        }
    )


def table_from(table: Mapping[str, Any]) -> Table:
    """A table from its JSON."""
    rows = tuple(tuple(row) for row in table["rows"])
    return Table(table["title"], tuple(table["columns"]), rows)


def of_rank(finding: Finding, rank: int) -> Finding:
    """The finding, with the rank of the process that made it."""
    return replace(finding, rank=rank)


def _stats_from(stats: Mapping[str, Any]) -> TensorStats:
    where = stats["where"]
    return TensorStats(
        **{
            **stats,
            "shape": tuple(stats["shape"]),
            "where": None if where is None else tuple(where),
        }
    )
