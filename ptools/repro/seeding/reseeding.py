"""Seeds that a program sets itself: they replace ours, and the user wants to know."""

from __future__ import annotations

import functools
import os
import random
import sys
from typing import Any

from ptools.imports import after_import
from ptools.repro.seeding.places import shown, users_line

_SHOWN = 40  # characters of a seed


class Reseeding:
    """The calls that seed a global generator, each line once."""

    def __init__(self) -> None:
        self._calls: dict[tuple[str, tuple[str, int]], str] = {}
        self._pid = os.getpid()

    def watch(self) -> None:
        """Note such calls from now on."""
        self._note(random, "random", "seed")
        after_import("numpy", lambda numpy: self._note(numpy.random, "np.random", "seed"))
        after_import("torch", lambda torch: self._note(torch, "torch", "manual_seed"))
        after_import("torch", lambda torch: self._note(torch, "torch", "seed"))

    def lines(self) -> list[str]:
        """A text for each line that did it, with the seed."""
        return [
            f"{call} at {shown(place)}" + (" (another in each run)" if call[-2:] == "()" else "")
            for (_, place), call in self._calls.items()
        ]

    def _note(self, home: Any, label: str, name: str) -> None:
        plain = getattr(home, name)

        @functools.wraps(plain)
        def noted(*args: Any, **kwargs: Any) -> Any:
            place = users_line(sys._getframe(1))
            if place[0] and os.getpid() == self._pid:
                told = ", ".join(repr(one)[:_SHOWN] for one in (*args, *kwargs.values()))
                self._calls.setdefault((label + name, place), f"{label}.{name}({told})")
            return plain(*args, **kwargs)

        setattr(home, name, noted)
