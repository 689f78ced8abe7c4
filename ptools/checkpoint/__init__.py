"""Make a checkpoint load anywhere: fix the file, never executing what is in it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptools.checkpoint.engine import fix_ckpt
    from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
    from ptools.checkpoint.look.diff import CheckpointDiff, diff_checkpoints
    from ptools.checkpoint.look.info import CheckpointInfo, describe
    from ptools.checkpoint.report import FixReport

# Resolved on first use: to look into a file takes a tenth of a second, half of it imports.
_HOME = {
    "CheckpointDiff": "look.diff",
    "CheckpointInfo": "look.info",
    "CorruptCheckpoint": "errors",
    "FixReport": "report",
    "NotACheckpoint": "errors",
    "describe": "look.info",
    "diff_checkpoints": "look.diff",
    "fix_ckpt": "engine",
}

__all__ = [
    "CheckpointDiff",
    "CheckpointInfo",
    "CorruptCheckpoint",
    "FixReport",
    "NotACheckpoint",
    "describe",
    "diff_checkpoints",
    "fix_ckpt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
