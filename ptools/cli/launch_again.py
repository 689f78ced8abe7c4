"""Launching a script several times, with a room's own code in each of its processes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptools.launcher.report import LaunchResult
    from ptools.program.process import Ended

_LOG_END = 1 << 16  # bytes


class Launches:
    """Runs a script's processes, first for all to see, then only for what is found.

    Args:
        child: our module that runs the script in each process.
        options: of `launch`.
    """

    def __init__(self, child: str, options: dict[str, Any]) -> None:
        self._child = child
        self._options = options
        self._first: LaunchResult | None = None

    def __call__(self, words: Sequence[str], variables: Mapping[str, str], quiet: bool) -> "Ended":
        from ptools.launcher.engine import launch
        from ptools.program.process import Ended

        options = self._options
        if self._first is not None:
            options = {**options, "logs": None, "say": None, "show": "none" if quiet else "first"}
        with _environment(variables):
            result = launch(self._child, words, module=True, **options)
        self._first = self._first or result
        return Ended(
            code=result.exit_code,
            interrupted=result.signal is not None,
            output=_end_of_log(result),
        )

    def tell(self) -> None:
        """Say how the first of them ended, as `ptools launch` alone does."""
        from ptools.cli.launch_pages import show

        if self._first is not None:
            show(self._first)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _end_of_log(result: "LaunchResult") -> str:
    """What the process that failed first printed last."""
    if not result.failures:
        return ""
    with (result.log_folder / f"rank_{result.failures[0].rank}.log").open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(size - _LOG_END, 0))
        return log.read().decode(errors="replace")
