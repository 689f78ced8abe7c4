"""What runs in each process of a debug run: `main`, with `script|module NAME ...` as arguments.

The program is run as Python itself would; the mode begins when it has imported torch. Nothing of
torch is imported before.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from types import ModuleType
from typing import TYPE_CHECKING

from ptools import script
from ptools.debug.job import Job, told, write_outcome
from ptools.imports import after_import

if TYPE_CHECKING:
    from ptools.debug.mode import Log, Mode

FOUND = 3
_LAUNCHED = "PTOOLS_LAUNCH_FOLDER"


def main() -> None:
    """Run the program that the arguments name, and write down what was found."""
    kind, name, *arguments = sys.argv[1:]
    run = _Run(told())
    after_import("torch", run.begin)
    script.seed(run.job.seed)
    code = 0
    try:
        (script.run_module if kind == "module" else script.run_script)(name, arguments)
    except SystemExit as error:
        run.error = error
        code = script.exit_code(error)
        raise
    except BaseException as error:
        run.error = error
        if _LAUNCHED in os.environ and not _is_stop(error):
            raise  # the launcher tells it, and which rank was first
        code = run.explain(error)
    finally:
        run.end()
    if code:
        raise SystemExit(code)


class _Run:
    """One process of the program."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rank = int(os.environ.get("RANK", "0"))
        self.error: BaseException | None = None
        self.ended = False
        self._mode: Mode | None = None
        self._log: Log | None = None
        self._stack = ExitStack()
        self._pid = os.getpid()

    def begin(self, torch: ModuleType) -> None:
        """The program has imported torch."""
        from ptools.debug.mode import Log, watching
        from ptools.debug.modes import mode_of

        self._log = Log(self.job.keep_going, self._write)
        self._mode = mode_of(self.job, self._log)
        self._stack.enter_context(watching(self._mode))

    def explain(self, error: BaseException) -> int:
        """Show an error as Python does, unless it is our own; the exit code."""
        if _is_stop(error):
            return FOUND
        sys.excepthook(type(error), error.with_traceback(script.below(error)), error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1

    def end(self) -> None:
        """The program is through."""
        if os.getpid() != self._pid:
            return
        self._stack.close()
        if self._mode is not None and self._log is not None:
            self._log.keep_going = True
            self._mode.finish()
        self.ended = True
        self._write()

    def _write(self) -> None:
        log, clock = self._log, self._mode and self._mode.clock
        write_outcome(
            self.job.folder,
            self.rank,
            {
                "rank": self.rank,
                "findings": [finding.to_dict() for finding in log.findings] if log else [],
                "notes": log.notes if log else [],
                "tables": [vars(table) for table in log.tables] if log else [],
                "ticks": clock.ticks if clock else 0,
                "steps": clock.steps if clock else 0,
                "ended": self.ended,
                "stopped": _is_stop(self.error),
                "error": _line_of(self.error),
            },
        )


def _is_stop(error: BaseException | None) -> bool:
    mode = sys.modules.get("ptools.debug.mode")
    return mode is not None and isinstance(error, mode.Stop)


def _line_of(error: BaseException | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
