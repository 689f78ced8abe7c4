"""A run that repeats, and the first operation where two runs part."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptools.repro.engine import repro_script
    from ptools.repro.fingerprints.fingerprint import Fingerprint
    from ptools.repro.report import ReproReport
    from ptools.repro.seeding.seeds import SeedReport, seed_everything
    from ptools.repro.seeding.workers import seed_worker
    from ptools.repro.verdict import Verdict

__all__ = [
    "Fingerprint",
    "ReproReport",
    "SeedReport",
    "Verdict",
    "repro_script",
    "seed_everything",
    "seed_worker",
]

# On first use: the process that starts the others needs no torch, and theirs start soon.
_HOME = {
    "Fingerprint": "fingerprints.fingerprint",
    "ReproReport": "report",
    "SeedReport": "seeding.seeds",
    "Verdict": "verdict",
    "repro_script": "engine",
    "seed_everything": "seeding.seeds",
    "seed_worker": "seeding.workers",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ptools.repro.{_HOME[name]}"), name)
