"""A toolbox for PyTorch users: the `ptools` command, and the same tools as a library."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptools.errors import PtoolsError
    from ptools.summary.engine import summarize
    from ptools.summary.report import Summary

__version__ = "0.1.0"

# Resolved on first use (PEP 562), so that `import ptools` does not import torch.
_HOME = {
    "PtoolsError": "ptools.errors",
    "Summary": "ptools.summary",
    "summarize": "ptools.summary",
}

__all__ = ["PtoolsError", "Summary", "__version__", "summarize"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
