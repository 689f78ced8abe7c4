"""The small library that a training script imports; each part a few lines over plain torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptools.train.conversion import Conversion
    from ptools.train.convert import quantise, to_channels_last, to_half
    from ptools.train.log import Log
    from ptools.train.memory.batchsize import Freed, empty_cache, find_batch_size
    from ptools.train.memory.checkpointing import checkpoint_modules, checkpoint_sequential_sqrt
    from ptools.train.memory.inplace import InplaceReport, inplace_activations
    from ptools.train.memory.report import MemoryReport, memory_report
    from ptools.train.memory.watch import watch_memory
    from ptools.train.prefetch import BackgroundLoader, CUDAPrefetcher
    from ptools.train.profiling import profile
    from ptools.train.rates import scale_lr, warmup
    from ptools.train.stepper import Stepper
    from ptools.train.sync import sync_bn
    from ptools.train.timing import timed, timer
    from ptools.train.training import Session, session

__all__ = [
    "BackgroundLoader",
    "CUDAPrefetcher",
    "Conversion",
    "Freed",
    "InplaceReport",
    "Log",
    "MemoryReport",
    "Session",
    "Stepper",
    "checkpoint_modules",
    "checkpoint_sequential_sqrt",
    "empty_cache",
    "find_batch_size",
    "inplace_activations",
    "memory_report",
    "profile",
    "quantise",
    "scale_lr",
    "session",
    "sync_bn",
    "timed",
    "timer",
    "to_channels_last",
    "to_half",
    "warmup",
    "watch_memory",
]

_HOME = {
    "BackgroundLoader": "prefetch",
    "CUDAPrefetcher": "prefetch",
    "Conversion": "conversion",
    "Freed": "memory.batchsize",
    "InplaceReport": "memory.inplace",
    "Log": "log",
    "MemoryReport": "memory.report",
    "Session": "training",
    "Stepper": "stepper",
    "checkpoint_modules": "memory.checkpointing",
    "checkpoint_sequential_sqrt": "memory.checkpointing",
    "empty_cache": "memory.batchsize",
    "find_batch_size": "memory.batchsize",
    "inplace_activations": "memory.inplace",
    "memory_report": "memory.report",
    "profile": "profiling",
    "quantise": "convert",
    "scale_lr": "rates",
    "session": "training",
    "sync_bn": "sync",
    "timed": "timing",
    "timer": "timing",
    "to_channels_last": "convert",
    "to_half": "convert",
    "warmup": "rates",
    "watch_memory": "memory.watch",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ptools.train.{_HOME[name]}"), name)
