"""What holds a DataLoader back, by name, and the settings that serve it better."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptools.loader_profile.engine import profile_loader
    from ptools.loader_profile.report import LoaderProfile

# Resolved on first use: the report needs no torch, which the engine does.
_HOME = {
    "LoaderProfile": "report",
    "profile_loader": "engine",
}

__all__ = ["LoaderProfile", "profile_loader"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
