"""A toolbox for PyTorch users: the `ptools` command, and the same tools as a library."""

from importlib import import_module

TYPE_CHECKING = False  # that of typing takes long, and each process of a run imports this
if TYPE_CHECKING:
    from ptools.checkpoint.engine import fix_ckpt
    from ptools.checkpoint.report import FixReport
    from ptools.debug.library import find_inplace, find_nan
    from ptools.errors import PtoolsError
    from ptools.fusion.engine import fuse
    from ptools.fusion.report import FusionReport
    from ptools.fusion.saved import load_fused
    from ptools.generators import rng_state, set_rng_state
    from ptools.image_lmdb.dataset import LMDBImageFolder
    from ptools.image_lmdb.engine import pack_lmdb
    from ptools.image_lmdb.report import PackReport
    from ptools.launcher.engine import launch
    from ptools.launcher.report import LaunchResult
    from ptools.loader_profile.engine import profile_loader
    from ptools.loader_profile.report import LoaderProfile
    from ptools.repro.fingerprints.fingerprint import Fingerprint
    from ptools.repro.seeding.seeds import SeedReport, seed_everything
    from ptools.repro.seeding.workers import seed_worker
    from ptools.summary.engine import summarize
    from ptools.summary.report import Summary

__version__ = "0.1.0"

# Resolved on first use (PEP 562), so that `import ptools` does not import torch.
_HOME = {
    "Fingerprint": "ptools.repro",
    "FixReport": "ptools.checkpoint",
    "FusionReport": "ptools.fusion",
    "LMDBImageFolder": "ptools.image_lmdb",
    "LaunchResult": "ptools.launcher",
    "LoaderProfile": "ptools.loader_profile",
    "PackReport": "ptools.image_lmdb",
    "PtoolsError": "ptools.errors",
    "SeedReport": "ptools.repro",
    "Summary": "ptools.summary",
    "find_inplace": "ptools.debug",
    "find_nan": "ptools.debug",
    "fix_ckpt": "ptools.checkpoint",
    "fuse": "ptools.fusion",
    "launch": "ptools.launcher",
    "load_fused": "ptools.fusion",
    "pack_lmdb": "ptools.image_lmdb",
    "profile_loader": "ptools.loader_profile",
    "rng_state": "ptools.generators",
    "seed_everything": "ptools.repro",
    "seed_worker": "ptools.repro",
    "set_rng_state": "ptools.generators",
    "summarize": "ptools.summary",
}

__all__ = [
    "Fingerprint",
    "FixReport",
    "FusionReport",
    "LMDBImageFolder",
    "LaunchResult",
    "LoaderProfile",
    "PackReport",
    "PtoolsError",
    "SeedReport",
    "Summary",
    "__version__",
    "find_inplace",
    "find_nan",
    "fix_ckpt",
    "fuse",
    "launch",
    "load_fused",
    "pack_lmdb",
    "profile_loader",
    "rng_state",
    "seed_everything",
    "seed_worker",
    "set_rng_state",
    "summarize",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
