"""Start, watch and explain a training of several processes."""

from importlib import import_module

TYPE_CHECKING = False  # that of typing takes long, and each process imports this
if TYPE_CHECKING:
    from ptools.launcher.engine import launch
    from ptools.launcher.report import LaunchResult

# Resolved on first use: each process of a run imports this package, and nothing it does not need.
_HOME = {"LaunchResult": "report", "launch": "engine"}

__all__ = ["LaunchResult", "launch"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
