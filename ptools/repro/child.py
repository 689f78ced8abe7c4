"""What runs in each process of a compared run: `main`, with `script|module NAME ...` as arguments.

The program is run as Python itself would, and recorded once it has imported torch. Nothing of torch
is imported before.
"""

from __future__ import annotations

import builtins
import functools
import os
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ptools import script
from ptools.imports import after_import
from ptools.program.tracebacks import clear
from ptools.repro.events import End
from ptools.repro.job import Job, told
from ptools.repro.trace import TraceWriter

if TYPE_CHECKING:
    from ptools.repro.recorder import Recorder

_ROOM = os.path.dirname(__file__) + os.sep  # noqa: PTH120
_LAUNCHED = "PTOOLS_LAUNCH_FOLDER"


def main() -> None:
    """Run the program that the arguments name, and record it."""
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
            raise  # the launcher tells it
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
        self.is_launched = _LAUNCHED in os.environ
        self.error: BaseException | None = None
        self.asked = False
        self._trace = TraceWriter(Path(job.folder, f"trace_{self.rank}.json"))
        self._recorder: Recorder | None = None
        self._notes: list[str] = []
        self._stack = ExitStack()
        self._pid = os.getpid()

    @property
    def stopped(self) -> bool:
        """Whether we ended the program."""
        recorder = sys.modules.get("ptools.repro.recorder")
        return recorder is not None and isinstance(self.error, recorder.Stop)

    def prepare(self) -> None:
        """Perturb the program, and record it when it has imported torch."""
        if not self.is_launched and script.PARENT in os.environ:
            script.end_with(int(os.environ.pop(script.PARENT)))
        self._write(ended=False)
        after_import("torch", self._begin)
        if sys.stdin is not None and sys.stdin.isatty():
            self._note_questions()

    def explain(self, error: BaseException) -> int:
        """Show an error as Python does, unless it is our own; the exit code."""
        if self.stopped:
            return 0
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1

    def end(self) -> None:
        """The program is through."""
        if os.getpid() != self._pid:
            return
        if self._recorder is not None and (
            self.error is None or isinstance(self.error, SystemExit)
        ):
            self._recorder.finish()
        self._stack.close()
        self._write(ended=True)

    def _begin(self, torch: ModuleType) -> None:
        """The program has imported torch."""
        from ptools.repro.recorder import Recorder

        self._recorder = Recorder(self._trace, self.job)
        self._stack.enter_context(self._recorder.recording())

    def _note_questions(self) -> None:
        ask = builtins.input

        @functools.wraps(ask)
        def noted(*prompt: object) -> str:
            self.asked = True
            return ask(*prompt)

        builtins.input = noted
        self._stack.callback(setattr, builtins, "input", ask)

    def _write(self, ended: bool) -> None:
        recorder = self._recorder
        told: dict[str, Any] = {}
        if recorder is not None:
            told = {
                "watched": True,
                "steps": recorder.clock.steps,
                "operations": recorder.operations,
                "nbytes": recorder.digester.nbytes,
            }
        self._trace.end(
            End(
                ended=ended,
                stopped=self.stopped,
                asked=self.asked,
                error=_told(self.error),
                notes=tuple(self._notes),
                **told,
            )
        )


def _told(error: BaseException | None) -> str:
    if error is None or isinstance(error, SystemExit):
        return ""
    return "".join(traceback.format_exception_only(error)).strip()


if __name__ == "__main__":
    main()
