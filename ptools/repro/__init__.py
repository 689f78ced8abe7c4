"""A run that repeats, and the first operation where two runs part."""

from importlib import import_module
from typing import TYPE_CHECKING

from ptools.repro.engine import repro_script
from ptools.repro.report import ReproReport
from ptools.repro.verdict import Verdict

if TYPE_CHECKING:
    from ptools.repro.seeding.seeds import SeedReport, seed_everything
    from ptools.repro.seeding.states import rng_state, set_rng_state
    from ptools.repro.seeding.workers import seed_worker

__all__ = [
    "ReproReport",
    "SeedReport",
    "Verdict",
    "repro_script",
    "rng_state",
    "seed_everything",
    "seed_worker",
    "set_rng_state",
]

# On first use: the process that starts the others needs no torch.
_HOME = {
    "SeedReport": "seeding.seeds",
    "rng_state": "seeding.states",
    "seed_everything": "seeding.seeds",
    "seed_worker": "seeding.workers",
    "set_rng_state": "seeding.states",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ptools.repro.{_HOME[name]}"), name)
