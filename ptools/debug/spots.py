"""Where in the user's code something happens: taken in about a microsecond, told when asked."""

from __future__ import annotations

import linecache
import sys
import sysconfig
from functools import cache
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType

from torch import nn

from ptools.debug.findings import Place
from ptools.debug.modules import Modules
from ptools.source import is_users

_STDLIB = sysconfig.get_path("stdlib")
Position = tuple[CodeType, int]  # a code object and the offset of an instruction in it


class Spot:
    """The innermost line that is not torch's, the user's own line, and the module."""

    __slots__ = ("inner", "module", "outer")

    def __init__(
        self, inner: Position | None, outer: Position | None, module: nn.Module | None
    ) -> None:
        self.inner = inner
        self.outer = outer
        self.module = module

    def place(self, modules: Modules) -> Place | None:
        """The line with its text; None if no line of the user's was running."""
        if self.inner is None:
            return None
        name = modules.name(self.module)
        outer = None if self.outer is None else _place(self.outer, "", None)
        return _place(self.inner, name, outer)


def spot(modules: Modules, depth: int = 1) -> Spot:
    """Where the caller's caller (and so on, by `depth`) stands."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return Spot(None, None, modules.current())
    inner = frame.f_code, frame.f_lasti
    outer = None
    if _is_installed(frame.f_code.co_filename):
        frame = frame.f_back
        while frame is not None and _is_passed_over(frame.f_code.co_filename):
            frame = frame.f_back
        outer = frame and (frame.f_code, frame.f_lasti)
    return Spot(inner, outer, modules.current())


@cache
def _is_installed(file: str) -> bool:
    """Whether a file is an installed package's or Python's own."""
    parts = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return bool(parts) or file.startswith(_STDLIB)


@cache
def _is_passed_over(file: str) -> bool:
    return not is_users(file) or _is_installed(file)


def _place(position: Position, module: str, outer: Place | None) -> Place:
    code, offset = position
    first, last, start, end = next(islice(code.co_positions(), offset // 2, None))
    line = first or code.co_firstlineno
    source = linecache.getline(code.co_filename, line)
    part = ""
    if start is not None and end is not None and first == last:
        # Columns count bytes.
        part = source.encode()[start:end].decode(errors="replace")
    return Place(
        file=code.co_filename,
        line=line,
        function=code.co_qualname,
        source=source.strip(),
        part=part,
        module=module,
        called_from=outer,
    )
