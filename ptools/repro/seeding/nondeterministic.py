"""Operations without a deterministic version: collected while a program runs, told once."""

from __future__ import annotations

import functools
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ptools.repro.seeding.alternatives import PATTERN, advice, operation_in
from ptools.repro.seeding.places import is_own, shown, users_line

_FRAME = re.compile(r'File "(.+)", line (\d+), in ')


class Collected:
    """torch's warnings, by operation and line."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, tuple[str, int]]] = Counter()
        self._pid = os.getpid()

    def begin(self) -> None:
        """Take such warnings from now on; all others are shown as before."""
        plain = warnings.showwarning

        def show(message: Any, *details: Any, **more: Any) -> None:
            operation = operation_in(str(message))
            if operation is None or self._is_new_in_worker(operation):
                plain(message, *details, **more)

        warnings.showwarning = show
        _stay_first()

    def _is_new_in_worker(self, operation: str) -> bool:
        """Count it; whether this is another process, which tells nothing at the end."""
        called = operation, users_line(sys._getframe(2))
        self._counts[called] += 1
        return self._counts[called] == 1 and os.getpid() != self._pid

    def lines(self) -> list[str]:
        """A line for each operation and place, the most frequent first."""
        return [
            f"  {operation} at {shown(place)}, {_times(count)}: {advice(operation)}"
            for (operation, place), count in self._counts.most_common()
        ]


def _stay_first() -> None:
    """Let such warnings through, also past the "ignore" or "error" of a program."""
    first = functools.partial(warnings.filterwarnings, "always", PATTERN, UserWarning)
    for name in ("filterwarnings", "simplefilter", "resetwarnings"):
        setattr(warnings, name, _with(getattr(warnings, name), first))
    first()


def _with(plain: Callable[..., None], then: Callable[[], None]) -> Callable[..., None]:
    @functools.wraps(plain)
    def both(*args: Any, **kwargs: Any) -> None:
        plain(*args, **kwargs)
        then()

    return both


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def refusal(error: BaseException) -> str | None:
    """One sentence on an error of `use_deterministic_algorithms`; None for another error."""
    operation = operation_in(str(error)) if isinstance(error, RuntimeError) else None
    if operation is None:
        return None
    place = shown(_in_worker(str(error)) or _innermost(error.__traceback__))
    return f"{operation} has no deterministic version, called at {place}: {advice(operation)}"


def _in_worker(message: str) -> tuple[str, int] | None:
    """The same in the text of a traceback, which comes with an error from a DataLoader's worker."""
    places = [(file, int(line)) for file, line in _FRAME.findall(message) if is_own(file)]
    return places[-1] if places else None


def _innermost(traceback: TracebackType | None) -> tuple[str, int]:
    """The last line of the user's own in a traceback."""
    found = ("", 0)
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if is_own(file):
            found = file, traceback.tb_lineno
        traceback = traceback.tb_next
    return found
