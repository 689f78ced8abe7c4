"""Notes, in each process, of what the user's program does: for what is silently wrong with it.

The classes and functions of torch that are of interest are made to tell as soon as the program
has imported them; nothing is imported here. They stay what they were for `isinstance`, pickle,
signatures and TorchScript, and add no line to a traceback.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType, ModuleType
from weakref import WeakKeyDictionary

from ptools.imports import after_import
from ptools.launcher.wire import AMP

TYPE_CHECKING = False  # that of typing takes long, and each process imports this
if TYPE_CHECKING:
    from typing import Any


class _Sampler:
    """What was done with one DistributedSampler."""

    def __init__(self, shuffle: bool) -> None:
        self.shuffle = shuffle
        self.iterations = 0
        self.set_epoch = False  # or its epoch set otherwise


class _Notes:
    def __init__(self) -> None:
        self.group = False  # a process group was formed
        self.autocast = False
        self.scaler = False
        self.amp: str | None = None  # what was asked of --amp
        self.samplers: list[_Sampler] = []


_notes = _Notes()
_known: WeakKeyDictionary[Any, _Sampler] = WeakKeyDictionary()


def install() -> None:
    """Begin to note. To be called before the program imports torch."""
    for name, change in _CHANGES.items():
        after_import(name, change)
    _notes.amp = os.environ.get(AMP)


def seen() -> dict[str, Any]:
    """What was noted."""
    samplers = [dict(vars(sampler)) for sampler in _notes.samplers]
    return {"torch": "torch" in sys.modules, **vars(_notes), "samplers": samplers}


def _telling(function: Any, note: Callable[..., None]) -> Any:
    """`function`, which calls `note` with its positional arguments when it has succeeded."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            below = error.__traceback__
            error.__traceback__ = below and below.tb_next  # without this line
            raise
        quietly(note, args)
        return result

    quietly = _quietly
    # TorchScript reads the source of `function` and looks its names up in the globals of this.
    scope = getattr(function, "__globals__", globals())
    telling = FunctionType(call.__code__, scope, closure=call.__closure__)
    return functools.update_wrapper(telling, function)


def _quietly(note: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Whatever a subclass is like, noting does not break the user's program."""
    with suppress(Exception):
        note(*arguments)


def _change_group(module: ModuleType) -> None:
    module.init_process_group = _telling(module.init_process_group, _group_formed)  # type: ignore[attr-defined]


def _change_sampler(module: ModuleType) -> None:
    sampler = module.DistributedSampler
    sampler.__iter__ = _telling(sampler.__iter__, _iterated)
    sampler.set_epoch = _telling(sampler.set_epoch, _epoch_set)


def _change_autocast(module: ModuleType) -> None:
    module.autocast.__enter__ = _telling(module.autocast.__enter__, _autocast_entered)


def _change_scaler(module: ModuleType) -> None:
    module.GradScaler.__init__ = _telling(module.GradScaler.__init__, _scaler_made)


_CHANGES = {
    "torch.distributed.distributed_c10d": _change_group,
    "torch.utils.data.distributed": _change_sampler,
    "torch.amp.autocast_mode": _change_autocast,
    "torch.amp.grad_scaler": _change_scaler,
}


def _group_formed(*_: Any) -> None:
    _notes.group = True


def _autocast_entered(autocast: Any, *_: Any) -> None:
    # Libraries enter a disabled one to keep a part in float32.
    _notes.autocast = _notes.autocast or bool(getattr(autocast, "_enabled", True))


def _scaler_made(*_: Any) -> None:
    _notes.scaler = True


def _iterated(sampler: Any) -> None:
    use = _use_of(sampler)
    use.iterations += 1
    use.set_epoch = use.set_epoch or sampler.epoch != 0


def _epoch_set(sampler: Any, *_: Any) -> None:
    _use_of(sampler).set_epoch = True


def _use_of(sampler: Any) -> _Sampler:
    """Its notes, which outlive it."""
    if sampler not in _known:
        _known[sampler] = _Sampler(shuffle=bool(sampler.shuffle))
        _notes.samplers.append(_known[sampler])
    return _known[sampler]
