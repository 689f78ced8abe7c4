"""What runs in each process of a debug run: `main`, with `script|module NAME ...` as arguments.

The program is run as Python itself would; the mode begins when it has imported torch. Nothing of
torch is imported before.
"""

from __future__ import annotations

import atexit
import builtins
import functools
import os
import sys
import threading
import time
import traceback
from contextlib import ExitStack, suppress
from types import ModuleType
from typing import TYPE_CHECKING

from ptools import script
from ptools.debug.job import FOUND, Job, told, write_outcome
from ptools.imports import after_import
from ptools.program.tracebacks import chain, clear

if TYPE_CHECKING:
    from ptools.debug.mode import Log, Mode

_ROOM = os.path.dirname(__file__) + os.sep  # noqa: PTH120
_LAUNCHED = "PTOOLS_LAUNCH_FOLDER"
_STAY = 5.0  # seconds in which a launcher ends all its processes
_HURRY = 10.0  # seconds in which a program has to end when it was stopped


def main() -> None:
    """Run the program that the arguments name, and write down what was found."""
    kind, name, *arguments = sys.argv[1:]
    run = _Run(told())
    run.prepare()
    code = 0
    try:
        (script.run_module if kind == "module" else script.run_script)(name, arguments)
    except SystemExit as error:
        run.error = error
        raise
    except BaseException as error:
        run.error = error
        clear(error, _ROOM)
        if run.is_launched and not run.stopped:
            raise  # the launcher tells it, and which rank was first
        code = run.explain(error)
    finally:
        run.end()
    if kind == "script" and isinstance(run.error, SyntaxError) and not run.error.__traceback__:
        os.execv(sys.executable, [sys.executable, name, *arguments])  # says it in its own words
    if code:
        raise SystemExit(code)


class _Run:
    """One process of the program."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rank = int(os.environ.get("RANK", "0"))
        self.is_launched = _LAUNCHED in os.environ
        self.error: BaseException | None = None
        self.ended = False
        self.asked = False
        self._mode: Mode | None = None
        self._log: Log | None = None
        self._stack = ExitStack()
        self._pid = os.getpid()

    @property
    def stopped(self) -> bool:
        """Whether a finding of ours ended the program."""
        mode = sys.modules.get("ptools.debug.mode")
        return mode is not None and any(isinstance(one, mode.Stop) for one in self._errors())

    @property
    def _failed(self) -> bool:
        """Whether the program ended in an error of its own."""
        if isinstance(self.error, SystemExit):
            return script.exit_code(self.error) != 0
        return self.error is not None and not self.stopped

    def prepare(self) -> None:
        """Seed the program, and begin to watch when it has imported torch."""
        if not self.is_launched and script.PARENT in os.environ:
            script.end_with(int(os.environ.pop(script.PARENT)))
        self._write()
        after_import("torch", self._begin)
        if not (self.is_launched and "PTOOLS_SEED" in os.environ):
            script.seed(self.job.seed + self.rank)
        if sys.stdin is not None and sys.stdin.isatty():
            self._note_questions()

    def explain(self, error: BaseException) -> int:
        """Show an error as Python does, unless it is our own; the exit code."""
        if self.stopped:
            return FOUND
        if not isinstance(error, SyntaxError) or error.__traceback__:
            sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1

    def end(self) -> None:
        """The program is through."""
        if os.getpid() != self._pid:
            return
        self._stack.close()
        if self._mode is not None and self._log is not None:
            self._log.keep_going = True
            self._mode.failed = self._failed
            try:
                self._mode.finish()
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                self._log.note(f"mode {self.job.mode} failed at the end ({what}): a bug of ptools")
            if self._failed and not (self._log.findings or self._mode.clock.ticks):
                self._log.notes.clear()  # it did not come as far as a training
        self.ended = True
        self._write()
        if self.stopped and self.is_launched:
            # A process that goes would make the others fail, and each say so.
            atexit.register(time.sleep, _STAY)

    def _begin(self, torch: ModuleType) -> None:
        """The program has imported torch."""
        from ptools.debug.mode import Log, watching
        from ptools.debug.modes import mode_of
        from ptools.debug.replaced import anomalies_passed, compile_noted

        self._log = Log(self.job.keep_going, self._found)
        self._mode = mode_of(self.job, self._log)
        self._stack.enter_context(compile_noted(self._log.note))
        if self.job.mode == "nan":
            self._stack.enter_context(anomalies_passed())
        self._stack.enter_context(watching(self._mode))
        self._write()

    def _note_questions(self) -> None:
        ask = builtins.input

        @functools.wraps(ask)
        def noted(*prompt: object) -> str:
            self.asked = True
            return ask(*prompt)

        builtins.input = noted
        self._stack.callback(setattr, builtins, "input", ask)

    def _found(self) -> None:
        self._write()
        if self.job.again and not self.job.keep_going:
            # All is known: nobody has to wait for a program that does not let itself be stopped.
            timer = threading.Timer(_HURRY, os._exit, [FOUND])
            timer.daemon = True
            timer.start()

    def _write(self) -> None:
        log, clock = self._log, self._mode and self._mode.clock
        with suppress(OSError):  # no disk is full enough to change how a program ends
            write_outcome(
                self.job.folder,
                self.rank,
                {
                    "rank": self.rank,
                    "findings": [finding.to_dict() for finding in log.findings] if log else [],
                    "notes": log.notes if log else [],
                    "tables": [vars(table) for table in log.tables] if log else [],
                    "ticks": clock.ticks if clock else 0,
                    "good_until": self._mode.good_until if self._mode else 0,
                    "steps": clock.steps if clock else 0,
                    "watched": self._mode is not None,
                    "asked": self.asked,
                    "ended": self.ended,
                    "stopped": self.stopped,
                    "errors": [_told(one) for one in self._errors()],
                },
            )

    def _errors(self) -> list[BaseException]:
        return list(chain(self.error)) if self.error is not None else []


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


if __name__ == "__main__":
    main()
