"""How long parts of a script take."""

from __future__ import annotations

import functools
import inspect
import statistics
import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, ParamSpec, Self, TypeVar

import torch

from ptools.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")

_HAS_MPS = torch.backends.mps.is_available()


class timer:
    """The seconds that a block takes: `seconds` of the last one, and `timed.report()` for all.

    Where CUDA or MPS are in use the device is waited for at both ends, so that what was queued
    counts where it was queued. Nothing is initialised, and a CPU is not waited for. A block that
    raises is not counted.

    Args:
        name: under which times are kept; a timer within another is kept as `outer / inner`. Without
            a name they are not kept.

    Example:
        >>> with timer("forward") as t:
        ...     y = net(x)
        >>> print(t)
        forward: 12.3 ms
    """

    __slots__ = ("_name", "seconds")

    def __init__(self, name: str = "") -> None:
        self._name = name
        self.seconds = 0.0

    def __enter__(self) -> Self:
        within = _here.within
        path = within[-1][0] if within else ""
        if self._name:
            path = f"{path} / {self._name}" if path else self._name
        _synchronize()
        within.append((path, perf_counter()))
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is None:
            _synchronize()
        now = perf_counter()
        path, start = _here.within.pop()
        self.seconds = now - start
        if self._name and kind is None:
            _kept.setdefault(path, array("d")).append(self.seconds)

    def __str__(self) -> str:
        shown = shown_seconds(self.seconds)
        return f"{self._name}: {shown}" if self._name else shown


@dataclass(frozen=True)
class Statistics:
    """What one named timer has measured, in seconds."""

    name: str
    count: int
    total: float
    mean: float
    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Times:
    """All named timers, in the order in which they first ended."""

    timers: tuple[Statistics, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; times in seconds."""
        return {"timers": [asdict(one) for one in self.timers]}

    def __str__(self) -> str:
        titles = ("timer", "count", "total", "mean", "median", "min", "max")
        rows = [
            (one.name, f"{one.count:,}", *map(shown_seconds, _figures(one))) for one in self.timers
        ]
        return aligned([titles, *rows])


class _Timed:
    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Time every call of a function, under its name.

        Raises:
            UsageError: it is a generator or a coroutine, a call of which does not run it.
        """
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            raise UsageError(
                f"a call of {function.__qualname__} does not run it yet",
                hint="put `with timer(...)` around the lines in it",
            )
        name = function.__qualname__

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with timer(name):
                return function(*args, **kwargs)

        return call

    def report(self) -> Times:
        """What all named timers of this process have measured; `print` shows a table."""
        return Times(tuple(_statistics(name, times) for name, times in list(_kept.items())))

    def reset(self) -> None:
        """Forget what was measured, as after warming up."""
        _kept.clear()


timed = _Timed()


class _Here(threading.local):
    def __init__(self) -> None:
        self.within: list[tuple[str, float]] = []  # timers that run in this thread, innermost last


_here = _Here()
_kept: dict[str, array[float]] = {}


def shown_seconds(seconds: float) -> str:
    """`83.1 us`, `12.3 ms`, `4.56 s`."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 1000 else f"{seconds:,.0f} s"
    return f"{seconds * 1e6:.3g} us"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _statistics(name: str, times: array[float]) -> Statistics:
    total = sum(times)
    median = statistics.median(times)
    return Statistics(name, len(times), total, total / len(times), median, min(times), max(times))


def _figures(one: Statistics) -> tuple[float, ...]:
    return one.total, one.mean, one.median, one.min, one.max


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif _HAS_MPS and torch.mps.current_allocated_memory():
        torch.mps.synchronize()
