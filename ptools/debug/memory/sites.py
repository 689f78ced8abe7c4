"""Where storages come from: a line within a module, in one phase of the training."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

from torch import nn

from ptools.files import shown_path
from ptools.program.callers import Position
from ptools.program.modules import Modules
from ptools.program.places import Place
from ptools.program.spots import Spot

FORWARD = "forward"
BACKWARD = "backward"
STEP = "optimizer"
OUTSIDE = "from outside"  # not made by an operation: a line that read what others had made

_MOST_SOURCE = 50  # characters of a line: it stands in tables


class Site:
    """A line, a module and a phase; the module is not kept alive."""

    __slots__ = ("_name", "inner", "module", "outer", "phase")

    def __init__(
        self,
        inner: Position | None,
        outer: Position | None,
        module: weakref.ref[nn.Module] | None,
        phase: str,
    ) -> None:
        self.inner = inner
        self.outer = outer
        self.module = module
        self.phase = phase
        self._name: str | None = None

    def name(self, modules: Modules) -> str:
        """The module's path, which has to be asked for while the model is alive."""
        if self._name is None:
            self._name = modules.name(self.module()) if self.module else ""
        return self._name

    def place(self, modules: Modules) -> Place | None:
        """The line; None if none of the user's was running."""
        place = Spot(self.inner, self.outer, None).place(modules)
        return place and replace(place, module=self.name(modules))


class Sites:
    """All sites, each made once."""

    def __init__(self) -> None:
        self._known: dict[Any, Site] = {}

    def of(self, spot: Spot, phase: str) -> Site:
        """The site of a spot in a phase."""
        inner, outer = spot.inner, spot.outer
        module = None if spot.module is None else weakref.ref(spot.module)
        # To hash a code object is to hash all its instructions; a site keeps it, and so its id.
        key = inner and (id(inner[0]), inner[1]), outer and (id(outer[0]), outer[1]), module, phase
        site = self._known.get(key)
        if site is None:
            site = self._known[key] = Site(inner, outer, module, phase)
        return site


def line_of(site: Site, modules: Modules) -> str:
    """`train.py:34 h = self.fc(x)`; of an installed package's line also the user's own."""
    place = site.place(modules)
    if place is None:
        return "no line of Python"
    source = place.source
    if len(source) > _MOST_SOURCE:
        source = source[: _MOST_SOURCE - 3] + "..."
    text = f"{_where(place)} {source}"
    return f"{text} (from {_where(place.called_from)})" if place.called_from else text


def _where(place: Place) -> str:
    return f"{shown_path(place.file)}:{place.line}"
