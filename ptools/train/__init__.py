"""The small library that a training script imports; each part a few lines over plain torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptools.train.rates import scale_lr, warmup
    from ptools.train.training import Session, session
    from ptools.train.stepper import Stepper

__all__ = ["Session", "Stepper", "scale_lr", "session", "warmup"]

_HOME = {
    "Session": "training",
    "Stepper": "stepper",
    "scale_lr": "rates",
    "session": "training",
    "warmup": "rates",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ptools.train.{_HOME[name]}"), name)
