"""Functions of torch that do something else while a program is watched."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_EAGER = "the program calls torch.compile: here it ran eagerly, so that each operation is seen"


@contextmanager
def compile_noted(note: Callable[[str], None]) -> Iterator[None]:
    """Note a call of torch.compile, which TORCHDYNAMO_DISABLE has already made harmless."""
    compile = torch.compile

    @functools.wraps(compile)
    def noted(*args: Any, **kwargs: Any) -> Any:
        note(_EAGER)
        return compile(*args, **kwargs)

    torch.compile = noted
    try:
        yield
    finally:
        torch.compile = compile


@contextmanager
def anomalies_passed() -> Iterator[None]:
    """Have torch's anomaly mode, if the program enables it, pass the NaN that we are after."""
    enable = torch.set_anomaly_enabled

    def enable_unchecked(enabled: bool, check_nan: bool = True) -> None:
        enable(enabled, False)

    torch.set_anomaly_enabled = enable_unchecked
    try:
        yield
    finally:
        torch.set_anomaly_enabled = enable
