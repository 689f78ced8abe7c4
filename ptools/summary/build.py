"""Construct a model without allocating its weights.

Constructors read small tensors (`torch.linspace(0, rate, depth)[i].item()`), so plain `meta`
construction fails on many ordinary models. Here only the large tensors go to `meta`; where even
that does not do, the whole model does; where that fails too, it is built for real as long as it
fits a quarter of the free memory.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ptools.errors import PtoolsError, UsageError
from ptools.files import human_bytes, shown_path
from ptools.rng import preserve_rng
from ptools.source import user_line

LARGE = 4096  # elements; the tensors that constructors read back are far smaller

_FACTORIES = frozenset(
    {
        torch.empty,
        torch.empty_strided,
        torch.full,
        torch.normal,
        torch.ones,
        torch.rand,
        torch.randint,
        torch.randn,
        torch.zeros,
    }
)


class LazyWeights(TorchFunctionMode):
    """Within it, new tensors of more than `LARGE` elements have a shape but no memory."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        _refuse_training(func)
        if func in _FACTORIES and _on_cpu(kwargs) and _elements(args, kwargs) > LARGE:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class WithinBudget(TorchFunctionMode):
    """Within it, tensors are real, and the sum of the new ones is bounded (in bytes)."""

    def __init__(self, budget: int) -> None:
        super().__init__()
        self.left = self.budget = budget

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        _refuse_training(func)
        if func in _FACTORIES:
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            self.left -= _elements(args, kwargs) * dtype.itemsize
            if self.left < 0:
                raise PtoolsError(
                    "the constructor needs real tensors, and they take more than "
                    f"{human_bytes(self.budget)}, a quarter of the free memory",
                    hint="make the constructor independent of tensor values, or free some memory",
                )
        return func(*args, **kwargs)


def build(factory: Callable[[], Any]) -> nn.Module:
    """Call `factory` so that the model's large tensors take no memory, if that can be done.

    Raises UsageError if the result is no `nn.Module`, and whatever the factory raises for real.
    """
    for context in (LazyWeights(), torch.device("meta")):
        try:
            with preserve_rng(), context:
                return _a_module(factory())
        except Exception as error:
            if isinstance(error, UsageError) and error.__cause__ is None:
                raise  # the same with real tensors
    return build_real(factory)


def build_real(factory: Callable[[], Any]) -> nn.Module:
    """Call `factory` with real tensors, within a quarter of the free memory."""
    with preserve_rng(), WithinBudget(free_memory() // 4):
        return _a_module(factory())


def free_memory() -> int:
    """Bytes of memory that a new allocation can have without swapping."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _a_module(made: Any) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"the target is of type {type(made).__name__}, not an nn.Module",
            hint="name the model's class, an instance, or a function that returns one",
        )
    return made


def _refuse_training(func: Any) -> None:
    """A script that trains when it is imported would do so for hours."""
    if func is torch.Tensor.backward:
        file, line = user_line(sys._getframe(2)) or ("the target", 0)
        raise UsageError(
            f"{shown_path(file)}:{line} trains: loading a model must not run a backward",
            hint='move the training under `if __name__ == "__main__":`',
        )


def _on_cpu(kwargs: dict[str, Any]) -> bool:
    return str(kwargs.get("device") or "cpu") == "cpu"


def _elements(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Elements of the tensor that a factory call makes; 0 where its size can't be read."""
    size = kwargs.get("size", args[0] if args and isinstance(args[0], tuple | list) else args)
    try:
        return math.prod(int(dimension) for dimension in size)
    except (TypeError, ValueError):
        return 0
