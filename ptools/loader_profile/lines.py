"""Which lines of the user's code take a worker's time, by a timer that interrupts it.

Python runs a signal's handler when the C call at hand has ended, so the line that the handler sees
is the one that took the time since the sample before, however long that call was.
"""

import inspect
import linecache
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import FrameType

from ptools.loader_profile.report import Line
from ptools.usercode import is_user_code

_PERIOD = 0.005  # seconds; costs a worker 1 to 5 % of its time


class LineSampler:
    """Adds up the seconds that the main thread of a process spends on lines of the user's code.

    What is on the stack at `start()` is not counted: a forked worker still has the frames of the
    script that forked it, which have nothing to do with its work.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, int], float] = defaultdict(float)
        self._is_user_code: dict[str, bool] = {}
        self._outside: frozenset[FrameType] = frozenset()
        self._last = 0.0

    def start(self) -> bool:
        """Sample from now on; False, and nothing is done, if the user has use for the alarm."""
        if not _alarm_is_free():
            return False
        self._outside = frozenset(self._users_frames(inspect.currentframe()))
        self._last = time.perf_counter()
        signal.signal(signal.SIGALRM, self._sample)
        signal.siginterrupt(signal.SIGALRM, False)  # C code seldom retries as Python does
        signal.setitimer(signal.ITIMER_REAL, _PERIOD, _PERIOD)
        return True

    def take(self) -> dict[tuple[str, int], float]:
        """The seconds by file and line since the last call."""
        seconds, self._seconds = self._seconds, defaultdict(float)
        return dict(seconds)

    def stop(self) -> None:
        """Give the alarm back; that of user code which has taken it meanwhile stays."""
        if signal.getsignal(signal.SIGALRM) == self._sample:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self._outside = frozenset()

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        now = time.perf_counter()
        user = next(self._users_frames(frame), None)
        if user is not None and user not in self._outside:
            line = user.f_lineno or user.f_code.co_firstlineno  # some bytecode is of no line
            self._seconds[user.f_code.co_filename, line] += now - self._last
        self._last = now

    def _users_frames(self, frame: FrameType | None) -> Iterator[FrameType]:
        """Those of the user's code, the innermost first."""
        while frame is not None:
            if self._is_users(frame.f_code.co_filename):
                yield frame
            frame = frame.f_back

    def _is_users(self, file: str) -> bool:
        if file not in self._is_user_code:
            self._is_user_code[file] = is_user_code(file)
        return self._is_user_code[file]


def top(seconds: Mapping[tuple[str, int], float], count: int = 5) -> tuple[Line, ...]:
    """The lines that took most, with their share of all the seconds given."""
    total = sum(seconds.values())
    most = sorted(seconds.items(), key=lambda item: -item[1])[:count]
    return tuple(
        Line(file, line, linecache.getline(file, line).strip(), taken / total)
        for (file, line), taken in most
    )


def _alarm_is_free() -> bool:
    """Whether nobody has a handler for SIGALRM or a timer that sends it."""
    if not hasattr(signal, "setitimer"):  # Windows
        return False
    unused = signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    return unused and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
