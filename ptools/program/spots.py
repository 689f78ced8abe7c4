"""Where in the user's code something happens: taken in about a microsecond, told when asked."""

from __future__ import annotations

import sys
import sysconfig
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import torch
from torch import nn
from torch.autograd import graph

from ptools.program.callers import Position, place_at
from ptools.program.modules import Modules
from ptools.program.places import Place
from ptools.source import is_users

_STDLIB = sysconfig.get_path("stdlib")
_ENGINE = graph._engine_run_backward.__code__
_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
_OPTIMIZERS = str(Path(torch.optim.__file__).parent)


class Spot:
    """The innermost line that is not torch's, the user's own line, and the module."""

    __slots__ = ("_module", "inner", "outer")

    def __init__(
        self, inner: Position | None, outer: Position | None, module: nn.Module | None
    ) -> None:
        self.inner = inner
        self.outer = outer
        # Spots are kept by the thousand, and must not keep a model that is gone.
        self._module = None if module is None else weakref.ref(module)

    @property
    def module(self) -> nn.Module | None:
        """The innermost module that was being called, if it is still there."""
        return None if self._module is None else self._module()

    def place(self, modules: Modules) -> Place | None:
        """The line with its text; None if no line of the user's was running."""
        if self.inner is None:
            return None
        name = modules.name(self.module)
        outer = None if self.outer is None else place_at(self.outer)
        return replace(place_at(self.inner), module=name, called_from=outer)


def spot(modules: Modules, depth: int = 1) -> Spot:
    """Where the caller's caller (and so on, by `depth`) stands."""
    return _outside(sys._getframe(depth), modules)


def caller_of_function(modules: Modules, depth: int = 1) -> Spot | None:
    """Where `apply` of an autograd Function was called whose forward is running, if one is."""
    return _caller_of(_APPLY, sys._getframe(depth), modules)


def caller_of_backward(modules: Modules, depth: int = 1) -> Spot | None:
    """Where the backward that is running was called."""
    return _caller_of(_ENGINE, sys._getframe(depth), modules)


def _caller_of(code: CodeType, frame: FrameType | None, modules: Modules) -> Spot | None:
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return None if frame is None else _outside(frame, modules)


def _outside(frame: FrameType | None, modules: Modules) -> Spot:
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return _spot_at(frame, modules)


def _spot_at(frame: FrameType | None, modules: Modules) -> Spot:
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


def in_users_backward(depth: int = 1) -> bool:
    """Whether a backward has called code of the user's: a Function, a hook, a checkpoint."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and frame.f_code is not _ENGINE:
        if is_users(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


def in_optimizer(depth: int = 1) -> bool:
    """Whether one of torch's optimizers is at work."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and not is_users(frame.f_code.co_filename):
        if frame.f_code.co_filename.startswith(_OPTIMIZERS):
            return True
        frame = frame.f_back
    return False


@cache
def _is_installed(file: str) -> bool:
    """Whether a file is an installed package's or Python's own."""
    parts = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return bool(parts) or file.startswith(_STDLIB)


@cache
def _is_passed_over(file: str) -> bool:
    return not is_users(file) or _is_installed(file)
