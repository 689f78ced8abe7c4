"""Start the processes of one machine, watch them, and end them in order."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ptools.launcher.job import Job
from ptools.launcher.listen import GIVEN, LISTEN
from ptools.launcher.output import Output
from ptools.launcher.warden import Warden
from ptools.launcher.wire import ASK, FOLDER, LAUNCHER
from ptools.launcher.world import World, environment

# All that concerns a failure is imported when there is one.
if TYPE_CHECKING:
    import socket

    from ptools.launcher.hang import HangWatch
    from ptools.launcher.records import Failure

_LOOK = 0.02  # seconds between two looks at the processes
_ANSWER = 0.1  # seconds to tell a stack: a SIGTERM would come before the question
_LAST_WORDS = 1.0  # seconds in which a process that failed may end by itself
# Not `-m`: that would find what lies in the current folder before Python's own modules.
_BOOT = (
    "import sys; sys.flags.safe_path or sys.path.pop(0); "
    "{home} in sys.path or sys.path.append({home}); "
    "from ptools.launcher.worker import main; main()"
).format(home=repr(str(Path(__file__).parents[2])))
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Outcome:
    """How the processes of this machine ended."""

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}  # by local rank; negative for a signal
        self.ended_ns: dict[int, int] = {}
        self.failures: list[Failure] = []  # that they reported, and that were seen
        self.signal: int | None = None  # the one that this launcher was sent
        self.asked = False  # the processes wrote down where they were


class Supervisor:
    """One run of the processes of this machine.

    `run` does it all. What has a loop and signals of its own calls `start`, then `step` for as long
    as `running`.
    """

    def __init__(
        self,
        job: Job,
        world: World,
        folder: Path,
        output: Output,
        grace: float,
        variables: dict[str, str],
        listener: "socket.socket | None" = None,  # has the world's port, if it is on one machine
        hang: "HangWatch | None" = None,
    ) -> None:
        self._job, self._world, self._folder, self._output = job, world, folder, output
        self._grace, self._variables, self._listener = grace, variables, listener
        self._hang, self._heard_ns = hang, 0
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._signals: list[int] = []
        self._stopping: float | None = None  # when what is left is killed
        self._stopped_ns: float = float("inf")  # who ends later was told to
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Start all processes, and return when the last one has ended."""
        is_main = threading.current_thread() is threading.main_thread()  # others get no signals
        before = {number: signal.getsignal(number) for number in _SIGNALS if is_main}
        try:
            with Warden() as warden:
                for number in before:
                    signal.signal(number, lambda number, _: self.take(number))
                self.start(warden)
                while self.running:
                    self.step()
        finally:
            self._send(signal.SIGKILL)
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.outcome()

    def start(self, warden: Warden) -> None:
        """Start all processes."""
        for local_rank in range(self._world.procs):
            self._start(local_rank)
            warden.watch(self._processes[local_rank].pid)

    def take(self, number: int) -> None:
        """A signal has come: the first ends the processes in order, the second at once."""
        self._signals.append(number)

    @property
    def running(self) -> bool:
        return len(self._outcome.codes) < len(self._processes)

    def outcome(self) -> Outcome:
        """How it ended; of use when nothing is running any more."""
        self._output.drain()
        if self._has_failed():
            self._outcome.failures = self._failures()
        return self._outcome

    def _start(self, local_rank: int) -> None:
        command = [sys.executable, "-c", _BOOT, self._job.kind, self._job.name]
        variables = {
            **environment(self._world, local_rank, self._variables),
            FOLDER: str(self._folder),
            LAUNCHER: str(os.getpid()),
        }
        inherited = []
        if self._listener is not None:
            variables[GIVEN] = str(self._world.master_port)
            if local_rank == 0:
                inherited = [self._listener.fileno()]
                variables[LISTEN] = str(self._listener.fileno())
        stdout, stderr = self._output.ends(local_rank)
        self._processes[local_rank] = subprocess.Popen(
            [*command, *self._job.arguments],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=inherited,
            start_new_session=True,  # Ctrl-C comes to the launcher alone
        )
        self._output.started(local_rank)

    def step(self) -> None:
        """Pass on what they print, see who has ended, and act on it."""
        self._output.pump(_LOOK)
        self._note_ended()
        if self._hang is not None and self._stopping is None:
            self._look_for_a_hang(self._hang)
        if self._stopping is None and self._signals:
            self._outcome.signal = self._signals[0]
            self.stop(self._signals[0])
        elif self._stopping is None and self._has_failed():
            self._end_after_a_failure()
        if len(self._signals) > 1 or time.monotonic() > (self._stopping or float("inf")):
            self._send(signal.SIGKILL)

    def _look_for_a_hang(self, watch: "HangWatch") -> None:
        if self._output.last_ns != self._heard_ns:
            self._heard_ns = self._output.last_ns
            watch.heard()
        else:
            watch.look(self._ask_where, self._places)

    def _places(self) -> dict[int, str]:
        """Where each process that still runs says it is."""
        from ptools.launcher.stacks import last_stack, where

        found = {}
        for local_rank in range(self._world.procs):
            rank = self._world.rank(local_rank)
            stack = last_stack(self._folder / f"stack_{rank}.txt")
            if local_rank not in self._outcome.codes and stack is not None:
                found[rank] = where(stack) or "outside of Python"
        return found

    def _note_ended(self) -> None:
        for local_rank, process in self._processes.items():
            if local_rank not in self._outcome.codes and process.poll() is not None:
                self._outcome.codes[local_rank] = process.returncode
                self._outcome.ended_ns[local_rank] = time.time_ns()

    def _has_failed(self) -> bool:
        # The report comes before the process ends, which may take its time or never happen.
        reported = any(self._folder.glob("failure_*.json"))
        return reported or any(self._outcome.codes.values())

    def _end_after_a_failure(self) -> None:
        self._ask_where()
        from ptools.launcher.failures import is_collateral, ordered

        answered = time.monotonic() + _ANSWER
        until = time.monotonic() + _LAST_WORDS
        while self.running and time.monotonic() < until and not self._signals:
            if not self._failing() and time.monotonic() > answered:
                break
            self._output.pump(_LOOK)
            self._note_ended()
        first, *others = ordered(self._failures())
        for failure in (first, *(one for one in others if not is_collateral(one))):
            self._output.show_from_failure(failure.rank - self._world.rank(0))
        self.stop(signal.SIGTERM)

    def _failing(self) -> bool:
        """Whether a process that reported a failure has not ended yet, or the cause is unknown."""
        from ptools.launcher.failures import is_collateral

        failures = self._failures()
        failed = {failure.rank - self._world.rank(0) for failure in failures}
        # The one that has gone may still be in the `finally` of its error.
        unexplained = self.running and all(map(is_collateral, failures))
        return unexplained or bool(failed - self._outcome.codes.keys())

    def _ask_where(self) -> None:
        self._outcome.asked = True
        for local_rank, process in self._processes.items():
            ready = self._folder / f"ready_{self._world.rank(local_rank)}"
            if local_rank not in self._outcome.codes and ready.exists():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, ASK)

    def stop(self, number: int) -> None:
        """Have what is left end by this signal, within the grace."""
        self._stopping = time.monotonic() + self._grace
        self._stopped_ns = time.time_ns()
        self._send(number)

    def _send(self, number: int) -> None:
        """Signal each process with all that it started."""
        for local_rank, process in self._processes.items():
            if local_rank not in self._outcome.codes or number == signal.SIGKILL:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)

    def _failures(self) -> "list[Failure]":
        """What the processes reported, and those that ended badly without a word."""
        from dataclasses import replace

        from ptools.launcher.records import read_failures, silent

        found = {failure.rank: failure for failure in read_failures(self._folder)}
        for local_rank, code in self._outcome.codes.items():
            rank = self._world.rank(local_rank)
            shell_code = code if code >= 0 else 128 - code
            if rank in found:
                found[rank] = replace(found[rank], exit_code=shell_code)
            elif code and self._outcome.ended_ns[local_rank] < self._stopped_ns:
                found[rank] = silent(rank, code, self._outcome.ended_ns[local_rank])
        return list(found.values())
