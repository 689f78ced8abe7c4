"""What runs in each process of a compared run: `main`, with `script|module NAME ...` as arguments.

The program is run as Python itself would, and recorded once it has imported torch. Nothing of torch
is imported before.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ptools import script
from ptools.imports import after_import
from ptools.program.callers import is_own, place_at
from ptools.program.tracebacks import clear
from ptools.repro.events import End
from ptools.repro.job import Job, told
from ptools.repro.outputs.writes import watch_writes
from ptools.repro.perturb import install
from ptools.repro.ranks import together
from ptools.repro.suspects.notes import Suspects
from ptools.repro.trace import TraceWriter, trace_file

if TYPE_CHECKING:
    from ptools.repro.recording.recorder import Recorder

_ROOM = os.path.dirname(__file__) + os.sep  # noqa: PTH120


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
        self.rank = together.own_rank()
        self.is_launched = together.LAUNCHED in os.environ
        self.error: BaseException | None = None
        file = trace_file(job.folder, self.rank)
        self._trace = TraceWriter(file)
        self._children = file.with_suffix("")
        self._children.mkdir()
        self._recorder: Recorder | None = None
        self._suspects = Suspects(self._position, self._children)
        self._notes: list[str] = []
        self._stack = ExitStack()
        self._pid = os.getpid()

    @property
    def stopped(self) -> bool:
        """Whether we ended the program."""
        recorder = sys.modules.get("ptools.repro.recording.recorder")
        return recorder is not None and isinstance(self.error, recorder.Stop)

    def prepare(self) -> None:
        """Perturb the program, and record it when it has imported torch."""
        if not self.is_launched and script.PARENT in os.environ:
            script.end_with(int(os.environ.pop(script.PARENT)))
        self._write(ended=False)
        if self.job.outputs:
            watch_writes(Path(self.job.outputs))
        install(self.job.perturbed)
        self._stack.enter_context(self._suspects.installed())
        after_import("torch", self._begin)

    def explain(self, error: BaseException) -> int:
        """Show an error as Python does, unless it is our own; the exit code."""
        if self.stopped:
            return self._stopped_code(error)
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
        together.leave(self.job.folder)

    def _stopped_code(self, stop: Any) -> int:
        if not stop.cut:
            return 0
        # The launcher ends the others first: a process that goes would make them fail.
        atexit.register(time.sleep, together.STAY)
        return together.CUT

    def _position(self) -> int:
        """Events that were recorded."""
        return 0 if self._recorder is None else self._recorder.events

    def _begin(self, torch: ModuleType) -> None:
        """The program has imported torch."""
        from ptools.repro.recording.recorder import Recorder

        kind: type[Recorder] = Recorder
        if self.job.resume:
            from ptools.repro.resume.recorder import ResumeRecorder

            kind = ResumeRecorder
        if "threads" in self.job.perturbed:
            self._note_threads(torch)
        self._recorder = kind(self._trace, self.job, self._children)
        self._stack.enter_context(self._recorder.recording())

    def _note_threads(self, torch: Any) -> None:
        """A program that sets its number of threads cannot be given another."""
        set_threads = torch.set_num_threads

        @functools.wraps(set_threads)
        def noted(number: int) -> None:
            self._notes.append("the program sets its number of threads itself")
            set_threads(number)

        torch.set_num_threads = noted
        self._stack.callback(setattr, torch, "set_num_threads", set_threads)

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
            if ended and self.job.surroundings:
                from ptools.repro.fingerprints.surroundings import surroundings

                told["environment"] = surroundings()
        self._trace.end(
            End(
                ended=ended,
                stopped=self.stopped,
                error=_told(self.error),
                place=_place(self.error),
                notes=tuple(self._notes),
                suspects=tuple(one.to_dict() for one in self._suspects.told()),
                **told,
            )
        )


def _place(error: BaseException | None) -> dict[str, Any] | None:
    """The innermost line of the user's own that an error came through."""
    at = None
    traceback = error.__traceback__ if error is not None else None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        at = (code, traceback.tb_lasti) if is_own(code.co_filename) else at
        traceback = traceback.tb_next
    return None if at is None else asdict(place_at(at))


def _told(error: BaseException | None) -> str:
    if error is None or isinstance(error, SystemExit):
        return ""
    return "".join(traceback.format_exception_only(error)).strip()


if __name__ == "__main__":
    main()
