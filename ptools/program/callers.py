"""The user's own line on a stack, found without torch: also before the program has imported it."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from functools import cache
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType

from ptools.program.places import Place

Position = tuple[CodeType, int]  # a code object and the offset of an instruction in it

_STDLIB = sysconfig.get_path("stdlib") + os.sep
_OURS = f"{Path(__file__).parents[1]}{os.sep}"
_IMPORT = "<frozen importlib"


def is_ours(file: str) -> bool:
    """Whether a code object's file is one of this package's."""
    return file.startswith(_OURS)


@cache
def is_own(file: str) -> bool:
    """Whether it is a file of the user's own: neither installed, nor Python's, nor no file."""
    if {"site-packages", "dist-packages"} & set(Path(file).parts):
        return False
    torch = getattr(sys.modules.get("torch"), "__file__", None)  # it may be built in its source
    return not (
        file.startswith((_STDLIB, _OURS, "<"))
        or (torch is not None and file.startswith(f"{Path(torch).parent}{os.sep}"))
    )


def package_of(frame: FrameType) -> str:
    """The package that the code of a frame belongs to, by its name."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def own_frame(frame: FrameType | None, past: str) -> tuple[FrameType | None, str]:
    """The innermost frame of the user's own from `frame` on, and the package that it called.

    None if there is none, if an import stands between (it is the package's doing, then), or a
    frame of the file `past`.
    """
    called = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if is_own(file):
            return frame, called
        if file == past or file.startswith(_IMPORT):
            break
        if not is_ours(file):
            called = package_of(frame)
        frame = frame.f_back
    return None, called


def place_at(position: Position) -> Place:
    """A position as a line with its text."""
    code, offset = position
    first, last, start, end = next(islice(code.co_positions(), offset // 2, None))
    line = first or code.co_firstlineno
    source = linecache.getline(code.co_filename, line)
    part = ""
    if start is not None and end is not None and first == last:
        # Columns count bytes.
        part = source.encode()[start:end].decode(errors="replace")
    return Place(code.co_filename, line, code.co_qualname, source.strip(), part)
