"""Image folders packed into LMDB, and read back as a dataset."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptools.image_lmdb.database import Database, open_images
    from ptools.image_lmdb.dataset import LMDBImageFolder
    from ptools.image_lmdb.engine import pack_lmdb
    from ptools.image_lmdb.errors import DamagedDatabase, NotADatabase
    from ptools.image_lmdb.packing import pack_shard
    from ptools.image_lmdb.plan import Plan
    from ptools.image_lmdb.report import PackReport

# Resolved on first use: packing needs neither torch nor a decoder, which the dataset does.
_HOME = {
    "DamagedDatabase": "errors",
    "Database": "database",
    "LMDBImageFolder": "dataset",
    "NotADatabase": "errors",
    "PackReport": "report",
    "Plan": "plan",
    "open_images": "database",
    "pack_lmdb": "engine",
    "pack_shard": "packing",
}

__all__ = [
    "DamagedDatabase",
    "Database",
    "LMDBImageFolder",
    "NotADatabase",
    "PackReport",
    "Plan",
    "open_images",
    "pack_lmdb",
    "pack_shard",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
