"""Run a function in a process of its own, so that nothing that it does stays."""

import ctypes
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn, TypeVar

import torch

from ptools.errors import PtoolsError
from ptools.usercode import describe

Result = TypeVar("Result")
_PR_SET_PDEATHSIG = 1
PATIENCE = 120  # seconds that a run may take longer than it should
_LAST_WORDS = 2.0  # seconds to end its workers in order


class RunError(PtoolsError):
    """The user's code raised; `text` is the whole traceback."""

    def __init__(self, message: str, text: str) -> None:
        super().__init__(message)
        self.text = text


def isolated(function: Callable[[], Result], seconds: float) -> Result:
    """What `function` returns, called in a forked child that is gone afterwards with its workers.

    Raises:
        RunError: the function raised.
        PtoolsError: it did not return within `seconds`, or the process died.
    """
    ours, theirs = Pipe(duplex=False)
    with warnings.catch_warnings():
        # The child uses one thread of its own and leaves by os._exit.
        warnings.simplefilter("ignore", DeprecationWarning)
        parent = os.getpid()
        pid = os.fork()
    if pid == 0:
        ours.close()
        _child(function, theirs, parent)
    theirs.close()
    patience = 0.0
    try:
        result: Result = _answer(ours, seconds)
        patience = _LAST_WORDS
        return result
    finally:
        ours.close()
        _end(pid, patience)


def _child(function: Callable[[], Any], answer: Connection, parent: int) -> NoReturn:
    os.setpgid(0, 0)
    _end_with(parent)
    # The parent deals with Ctrl-C: it ends this process and all that it started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # as that there are more workers than cores
    _forget_forkserver()
    torch.set_num_threads(1)  # OpenMP would wait for threads that a fork does not take along
    _print_to_stderr()
    try:
        try:
            message = pickle.dumps((True, function()))
        except PtoolsError as error:
            message = pickle.dumps((False, (error.message, error.hint)))
        except BaseException as error:
            told = (describe(error), traceback.format_exc())
            message = pickle.dumps((None, told))
        answer.send_bytes(message)
    finally:
        os._exit(0)


def _end_with(parent: int) -> None:
    """Have this process and all that it starts end when the parent is gone, even by kill -9.

    A DataLoader's worker looks after its own parent, but not in its first moments.
    """
    pid = os.getpid()

    def end(*_: object) -> None:
        if os.getpid() == pid:  # not in a worker, which has inherited the handler
            os.killpg(pid, signal.SIGKILL)

    signal.signal(signal.SIGHUP, end)
    with suppress(OSError, AttributeError):  # Linux alone
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)
    if os.getppid() != parent:  # it went before that call
        os._exit(1)


def _forget_forkserver() -> None:
    """Have a server of its own started: the parent's is no child of this process."""
    server: Any = forkserver._forkserver
    server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None


def _print_to_stderr() -> None:
    """Keep stdout for the result, whatever the user's code prints, in its workers too.

    The old streams may be locked by a thread of the parent, a progress bar's, which is not here.
    """
    os.dup2(2, 1)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def _answer(connection: Connection, seconds: float) -> Any:
    try:
        if not connection.poll(seconds):
            raise PtoolsError(
                f"a run was not through after {seconds:.0f} s",
                hint="--budget gives it more time; a loader that gives no batch is stuck",
            )
        done, told = pickle.loads(connection.recv_bytes())
    except EOFError:
        raise PtoolsError(
            "the process that ran the loader died without a word",
            hint="too little memory is the usual reason; try fewer workers",
        ) from None
    if done is None:
        raise RunError(*told)
    if not done:
        raise PtoolsError(*told)
    return told


def _end(pid: int, patience: float) -> None:
    """End the child, which has some seconds to end in order, and what is left of its group."""
    until = time.monotonic() + patience
    try:
        # It stays a zombie, so that its number is not given to another group meanwhile.
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if time.monotonic() > until:
                break
            time.sleep(0.005)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
