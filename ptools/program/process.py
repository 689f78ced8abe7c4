"""Run the program in a process of its own, with our code before it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from ptools import script
from ptools.program.stdin import Input

# Not `-m`: that would find what lies in the current folder before Python's own modules.
_BOOT = (
    "import sys; sys.flags.safe_path or sys.path.pop(0); "
    "{home} in sys.path or sys.path.append({home}); "
    "from {child} import main; main()"
)
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)
_KEPT = 1 << 16  # bytes
_LAST = 1.0  # seconds in which the end of an output may still come


@dataclass(frozen=True)
class Ended:
    """How a run of the program ended."""

    code: int  # as a shell gives it: 128 + signal
    signal: int | None = None  # the one that killed it
    interrupted: bool = False  # we were asked to end
    output: str = ""  # the end of what was not shown


class Runner(Protocol):
    """Runs the program once: `words` are what the child's `main` takes."""

    def __call__(
        self, words: Sequence[str], variables: Mapping[str, str], quiet: bool
    ) -> Ended: ...


class Processes:
    """Runs a program in one process after another, each with the same input.

    Args:
        child: our module whose `main` is called there.
        aside: show what the program prints on our stderr, where stdout is for something else.
    """

    def __init__(self, child: str, aside: bool = False) -> None:
        self._boot = boot(child)
        self._stdout = 2 if aside else None
        self._input = Input()

    def __call__(self, words: Sequence[str], variables: Mapping[str, str], quiet: bool) -> Ended:
        """Run `script|module NAME ARGUMENTS...`.

        Args:
            variables: are added to the environment.
            quiet: keep the end of the output instead of showing it.
        """
        variables = {**variables, script.PARENT: str(os.getpid())}
        with self._input.again() as stdin, _signals() as signals:
            process = subprocess.Popen(
                [sys.executable, "-c", self._boot, *words],
                env={**os.environ, **variables},
                stdin=stdin,
                stdout=subprocess.PIPE if quiet else self._stdout,
                stderr=subprocess.STDOUT if quiet else None,
            )
            signals.pass_on_to(process)
            output = _Tail(process.stdout) if process.stdout else None
            code = process.wait()
        return Ended(
            code=code if code >= 0 else 128 - code,
            signal=-code if code < 0 else None,
            interrupted=bool(signals.taken),
            output=output.text() if output else "",
        )


def boot(child: str) -> str:
    """Code for a new Python: calls `main` of a module of ours, wherever it was started."""
    return _BOOT.format(home=repr(str(Path(__file__).parents[2])), child=child)


class _Signals:
    """Those that came to us while the program ran.

    Ctrl-C on a terminal comes to the program too, which decides what to do; others are passed on.
    """

    def __init__(self) -> None:
        self.taken: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None

    def take(self, number: int, _: object = None) -> None:
        self.taken.append(number)
        if self._process is not None and number in _PASSED_ON:
            self._process.send_signal(number)

    def pass_on_to(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        for number in {*self.taken} & {*_PASSED_ON}:  # that came before it was there
            process.send_signal(number)


@contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    is_main = threading.current_thread() is threading.main_thread()  # others get no signals
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, *_PASSED_ON)
        # What we were told to ignore, as by nohup, the program ignores too.
        if is_main and signal.getsignal(number) is not signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, signals.take)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Tail:
    """The end of an output, however long that is."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe, self._end = pipe, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self) -> str:
        """What came last. Processes that were left behind may hold the pipe for ever."""
        self._thread.join(_LAST)
        return self._end.decode(errors="replace")

    def _read(self) -> None:
        with self._pipe:
            while piece := os.read(self._pipe.fileno(), _KEPT):
                self._end = (self._end + piece)[-_KEPT:]
