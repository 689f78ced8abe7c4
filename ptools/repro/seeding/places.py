"""The line of the user's that leads to where a program stands."""

from __future__ import annotations

import os
import sysconfig
from functools import cache
from pathlib import Path
from types import FrameType

_OURS = f"{Path(__file__).parents[2]}{os.sep}"
_STDLIB = f"{sysconfig.get_path('stdlib')}{os.sep}"


def users_line(frame: FrameType | None) -> tuple[str, int]:
    """File and line of the innermost frame that is neither Python's nor a package's."""
    while frame is not None:
        if is_own(frame.f_code.co_filename):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return "", 0


def shown(place: tuple[str, int]) -> str:
    """A place as it is told: relative where that is shorter."""
    file, line = place
    if not file:
        return "a library"
    relative = os.path.relpath(file)
    return f"{min(file, relative, key=len)}:{line}"


@cache
def is_own(file: str) -> bool:
    """Whether a file is the user's own."""
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return not (installed or file.startswith((_OURS, _STDLIB, "<")))
