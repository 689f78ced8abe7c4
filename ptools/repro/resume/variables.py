"""What a program keeps in variables of its own: counters, and copies of a model's tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import nn

from ptools.program.callers import is_own
from ptools.repro.events import Value
from ptools.repro.recording.leaves import number

Variables = dict[str, Any]
_DEEP = 3  # self.trainer.average.tensors


def variables(frame: FrameType | None) -> Variables:
    """The variables of the user's functions that are running, the innermost first.

    With the attributes of objects that are made of the user's own classes: `ema.shadow`.
    """
    found: Variables = {}
    while frame is not None:
        if is_own(frame.f_code.co_filename):
            for name, value in [*frame.f_locals.items()]:
                if not name.startswith("_"):
                    found.setdefault(name, value)
        frame = frame.f_back
    _add_attributes(found, found, _DEEP)
    return found


def _add_attributes(found: Variables, owners: Variables, depth: int) -> None:
    added = {
        f"{name}.{key}": one
        for name, value in owners.items()
        for key, one in _attributes(value)
        if not any(one is owner for owner in owners.values())
    }
    found.update(added)
    if added and depth > 1:
        _add_attributes(found, added, depth - 1)


def counters(found: Variables) -> Iterator[Value]:
    """Integers."""
    for name, value in found.items():
        if type(value) is int:
            yield number(name, value)


def copies(
    found: Variables, models: Iterable[nn.Module]
) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
    """Dictionaries of tensors by the names that a model has for them, as for an average."""
    own = {path: one for model in models for path, one in model.state_dict(keep_vars=True).items()}
    memory = {one.data_ptr() for one in own.values()}
    for name, value in found.items():
        if not isinstance(value, dict) or not value:
            continue
        if not all(isinstance(key, str) and key in own for key in value):
            continue
        tensors = [one for one in value.values() if isinstance(one, torch.Tensor)]
        # A state_dict() is no copy: its tensors are the model's own.
        if len(tensors) == len(value) and all(one.data_ptr() not in memory for one in tensors):
            yield name, value


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Of an object whose class the user wrote."""
    home = sys.modules.get(type(value).__module__)
    file = getattr(home, "__file__", None)
    if file is not None and is_own(file) and hasattr(value, "__dict__"):
        yield from ((name, one) for name, one in vars(value).items() if not name.startswith("_"))
