"""What runs first in each process: `main`, with `script|module|function NAME ...` as arguments.

It makes the process end with its launcher, prepares it to tell its stack, runs the user's program
as Python itself would, and writes down why it failed. It imports nothing of torch.
"""

import atexit
import faulthandler
import os
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace, TracebackType

from ptools import script
from ptools.launcher.wire import ASK, FOLDER, INJECT, LAUNCHER, write

TYPE_CHECKING = False  # that of typing takes long, and each process imports this
if TYPE_CHECKING:
    from typing import Any

_REST = 0.5  # seconds
_PATH = list(sys.path)


def main() -> None:
    """Run what the arguments name."""
    kind, name, *arguments = sys.argv[1:]
    rank = int(os.environ["RANK"])
    script.end_with(int(os.environ[LAUNCHER]))
    _tell_stacks(rank)
    # A line that was printed is not lost with the process, though it goes to a pipe.
    with suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    record = _Recorder(rank)
    atexit.register(_let_threads_rest, os.getpid())  # first, so that it runs last
    from ptools.launcher import listen, marks

    if "PTOOLS_SEED" in os.environ:
        script.seed(int(os.environ["PTOOLS_SEED"]))
    listen.install()
    if INJECT in os.environ:
        from ptools.launcher import inject

        inject.install()
    marks.install()
    code = 0
    try:
        _run(kind, name, arguments)
    except SystemExit as error:
        code = script.exit_code(error)
        if code:
            record(error, script.below(error), "exit")
        raise
    except BaseException as error:
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        record(error, script.below(error), "uncaught")
        # The hook of the user's program, which may be another by now, with its own frames alone.
        sys.excepthook(type(error), error.with_traceback(script.below(error)), error.__traceback__)
        raise SystemExit(code) from None
    finally:
        record.end(code, **marks.seen())


def _let_threads_rest(pid: int) -> None:
    """Wait until no thread of a process group is at work, while Python can still serve it.

    A thread of gloo that lets go of a tensor when Python is shutting down aborts the process, after
    a program that ended well (github.com/pytorch/pytorch/pull/179291).
    """
    from ptools.launcher import marks

    if os.getpid() != pid or not marks.seen()["group"]:
        return
    until = time.monotonic() + _REST
    while time.monotonic() < until:
        time.sleep(0.02)
        if not _others_run():
            return


def _others_run() -> bool:
    """Whether a thread besides this one has work, as the kernel sees it."""
    from threading import get_native_id

    here = get_native_id()
    for task in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # it has just ended
            if int(task.name) != here and (task / "stat").read_text().rpartition(") ")[2][0] == "R":
                return True
    return False


def _tell_stacks(rank: int) -> None:
    """Write all threads' stacks to a file on a signal, also from within a call into C."""
    file = Path(os.environ[FOLDER], f"stack_{rank}.txt").open("w")  # noqa: SIM115
    faulthandler.enable(file, all_threads=False)
    # faulthandler puts this back when it ends: a late question does not kill.
    signal.signal(ASK, signal.SIG_IGN)
    faulthandler.register(ASK, file=file, all_threads=True)
    Path(os.environ[FOLDER], f"ready_{rank}").touch()


class _Recorder:
    """Writes down the failure of this process, but not of one that it forked."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._pid = os.getpid()

    def __call__(self, error: BaseException, below: TracebackType | None, how: str) -> None:
        if os.getpid() != self._pid:
            return
        with suppress(OSError):  # no disk is full enough to change how a program ends
            self._write(error, below, how)

    def _write(self, error: BaseException, below: TracebackType | None, how: str) -> None:
        before, sys.path[:] = sys.path[:], _PATH  # a script may lie beside a token.py of its own
        from traceback import TracebackException

        from ptools.launcher.records import Failure, Frame, write_failure

        sys.path[:] = before
        told = TracebackException(type(error), error, below)
        failure = Failure(
            rank=self._rank,
            time_ns=time.time_ns(),
            type=type(error).__name__,
            message=str(told),  # of an error that cannot be printed too
            how=how,
            frames=tuple(
                Frame(one.filename, one.lineno or 0, one.name, one.line or "") for one in told.stack
            ),
            text="".join(told.format()),
        )
        write_failure(failure)

    def end(self, exit_code: int, **seen: object) -> None:
        """Note that the program is through; it may take a while to exit."""
        if os.getpid() == self._pid:
            with suppress(OSError):
                now = time.time_ns()
                write("end", self._rank, {"time_ns": now, "exit_code": exit_code, **seen})


def _run(kind: str, name: str, arguments: list[str]) -> None:
    """Execute a script or a module as `__main__`, as Python does, or call a function."""
    if kind == "function":
        _call(name)
    elif kind == "script":
        script.run_script(name, arguments)
    else:
        script.run_module(name, arguments)


def _call(name: str) -> None:
    home, _, path = name.rpartition(":")
    if home.endswith(".py"):
        script.first_on_path(Path(home).parent)
        # Not as __main__: what the file does there is for the process that launches.
        import runpy  # every process waits for what stands at the top of this file

        found: Any = SimpleNamespace(**runpy.run_path(home, run_name="__mp_main__"))
    else:
        script.first_on_path(Path.cwd())
        found = import_module(home)
    for part in path.split("."):
        found = getattr(found, part)
    found()
