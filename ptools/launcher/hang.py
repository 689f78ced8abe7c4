"""Nobody prints and nobody moves: then every process is asked where it is."""

import time
from collections.abc import Callable, Mapping

_APART = 2.0  # seconds between two looks; and the time in which a process answers
_ANSWER = 0.5


class HangWatch:
    """Looks at the processes when nothing was printed for `seconds`, and tells if none moves.

    A long step prints nothing either, but its processes are not at the same lines twice.
    """

    def __init__(self, seconds: float, tell: Callable[[str], None]) -> None:
        self._seconds, self._tell = seconds, tell
        self._quiet_since = self._next = time.monotonic()
        self._seen: Mapping[int, str] | None = None
        self._waiting = False
        self._told = False

    def heard(self) -> None:
        """Something was printed."""
        self._quiet_since = time.monotonic()
        self._seen, self._waiting, self._told = None, False, False
        self._next = self._quiet_since + self._seconds

    def look(self, ask: Callable[[], None], places: Callable[[], Mapping[int, str]]) -> None:
        """Called often. `ask` has the processes write their stacks, `places` reads them."""
        now = time.monotonic()
        if self._told or now < self._next:
            return
        if not self._waiting:
            ask()
            self._waiting, self._next = True, now + _ANSWER
            return
        self._waiting = False
        seen = places()
        if self._seen is not None and seen == self._seen:
            self._told = True
            self._tell(self._report(seen, now - self._quiet_since))
        elif self._seen is None:
            self._next = now + _APART
        else:
            self._next = now + self._seconds
        self._seen = None if self._seen is not None else seen

    def _report(self, places: Mapping[int, str], quiet: float) -> str:
        lines = [f"nothing was printed for {quiet:.0f} s, and no process moves; they are at:"]
        lines += [f"  rank {rank}: {place}" for rank, place in sorted(places.items())]
        if len(set(places.values())) > 1:
            lines.append("  they wait at different lines: the ranks took different ways there")
        return "\n".join(lines)
