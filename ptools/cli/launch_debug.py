"""`ptools launch --debug`: each process is watched as by `ptools debug`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptools.launcher.report import LaunchResult
    from ptools.program.process import Ended

_LOG_END = 1 << 16  # bytes


def run_watched(words: Sequence[str], module: bool, **options: Any) -> int:
    """Launch a script, again if something was seen, and say what was found."""
    from ptools import console
    from ptools.debug.engine import debug_script
    from ptools.debug.render import page
    from ptools.launcher.job import Job, check

    check(Job(words[0], tuple(words[1:]), "module" if module else "script"))
    launches = _Launches(options)
    report = debug_script(
        words[0],
        words[1:],
        module=module,
        seed=options["seed"],
        runner=launches,
        say=console.note,
    )
    if not report.findings:
        launches.tell()
    console.show(page(report))
    return report.exit_code


class _Launches:
    """Runs a script's processes, first for all to see, then only for what is found."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._first: LaunchResult | None = None

    def __call__(self, words: Sequence[str], variables: Mapping[str, str], quiet: bool) -> "Ended":
        from ptools.launcher.engine import launch
        from ptools.program.process import Ended

        options = self._options
        if self._first is not None:
            options = {**options, "logs": None, "say": None, "show": "none" if quiet else "first"}
        # Their page-long C++ stacks help nobody when the lines are named.
        plain = {"TORCH_SHOW_CPP_STACKTRACES": os.environ.get("TORCH_SHOW_CPP_STACKTRACES", "0")}
        with _environment({**plain, **variables}):
            result = launch("ptools.debug.child", words, module=True, debug=True, **options)
        self._first = self._first or result
        return Ended(
            code=result.exit_code,
            interrupted=result.signal is not None,
            output=_end_of_log(result),
        )

    def tell(self) -> None:
        """Say how the first of them ended, as without --debug."""
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
