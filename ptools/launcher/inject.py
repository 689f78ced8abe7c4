"""Autocast in a program that does not use it: `--amp bf16 --inject`.

Autocast is entered at the outermost call of a module, as one writes `with torch.autocast(...)`
around `model(x)`, and for no longer: it caches the weights it has cast until it ends, so that
switching it on for the whole process would train with the first weights for ever.
"""

import os
import threading
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ptools.imports import after_import
from ptools.launcher.wire import INJECT

if TYPE_CHECKING:
    from torch import nn


class _Forwards:
    """How many calls have run under the autocast of this module."""

    def __init__(self) -> None:
        self.number = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self.number += 1


_FORWARDS = _Forwards()


def install() -> None:
    """Wait for torch, if the launcher was told to."""
    if os.environ.get(INJECT) == "1":
        after_import("torch", _wrap_calls)


def count() -> int:
    """How many calls of a model have run under autocast because of this module."""
    return _FORWARDS.number


def _wrap_calls(torch: ModuleType) -> None:
    """Replace `nn.Module.__call__`.

    Hooks would not do: those of torch are left out when a KeyboardInterrupt ends the call, and run
    before the model's own forward hooks, which `with torch.autocast(...)` covers.
    """
    before = torch.nn.Module.__call__
    is_compiling = torch.compiler.is_compiling

    def call(self: "nn.Module", *args: Any, **kwargs: Any) -> Any:
        # What is being compiled is called from within autocast too.
        if is_compiling() or _is_within_autocast():
            return before(self, *args, **kwargs)
        with _autocast_for(self):
            return before(self, *args, **kwargs)

    torch.nn.Module.__call__ = call


def _autocast_for(module: "nn.Module") -> AbstractContextManager[object]:
    """Autocast on the device of a model that the program calls; nothing if it is a loss."""
    import torch

    if isinstance(module, torch.nn.modules.loss._Loss):
        return nullcontext()
    parameter = next(module.parameters(), None)  # without any it is no model
    if parameter is None or not torch.amp.is_autocast_available(parameter.device.type):
        return nullcontext()
    if torch.is_autocast_enabled(parameter.device.type):  # for the whole process, by the program
        return nullcontext()
    _FORWARDS.add()
    return torch.autocast(parameter.device.type, torch.bfloat16)


def _is_within_autocast() -> bool:
    """Whether this thread is in some `with torch.autocast(...)`, also one with enabled=False."""
    import torch

    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting() > 0
