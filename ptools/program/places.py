"""A line of a program: plain data, which goes from process to process as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """A line of a program, as it stood when an operation was called from it."""

    file: str
    line: int
    function: str
    source: str = ""  # the line's text, stripped
    part: str = ""  # the expression within the line, where Python knows it
    module: str = ""  # path of the innermost module that was being called: Net.head.0
    called_from: Place | None = None  # the user's own line, if `file` is an installed package's


def place_from(place: Mapping[str, Any]) -> Place:
    """A place from its JSON."""
    outer = place["called_from"]
    return Place(**{**place, "called_from": place_from(outer) if outer else None})
