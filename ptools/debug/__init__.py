"""The line that made the first NaN, and both lines of an in-place bug."""

from importlib import import_module
from typing import TYPE_CHECKING

from ptools.debug.engine import debug_script
from ptools.debug.findings import Finding, TensorStats
from ptools.debug.report import DebugReport
from ptools.program.places import Place

if TYPE_CHECKING:
    from ptools.debug.library import Found, find_inplace, find_nan

__all__ = [
    "DebugReport",
    "Finding",
    "Found",
    "Place",
    "TensorStats",
    "debug_script",
    "find_inplace",
    "find_nan",
]


def __getattr__(name: str) -> object:
    # On first use: the process that starts the others needs no torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("ptools.debug.library"), name)
