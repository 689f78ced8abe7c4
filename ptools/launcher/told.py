"""What the machines of a run tell each other at its end, through the store of their rendezvous.

Without it, a machine whose processes are well goes on, or waits, long after another has failed; and
each would report only its own part.
"""

import json
import time
from dataclasses import asdict

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from ptools.launcher.records import Failure, Frame

_FAILED, _HEARD, _DONE = "ptools.failed", "ptools.heard", "ptools.done"
_PAUSE = 0.1
_LISTEN = 3.0  # seconds to wait for the others to hear
_FINISH = 300.0  # seconds to wait for the others to finish, as torch's agent does


class Told:
    """The machines of one attempt: each round of the rendezvous has a store of its own."""

    def __init__(self, store: Store, machine: int, machines: int) -> None:
        self._store, self._machine, self._machines = store, machine, machines

    def is_over(self) -> bool:
        """Whether another machine has failed for good."""
        return self._count(_FAILED) > 0

    def tell(self, failures: list[Failure]) -> None:
        """This machine has failed for good: say how, and wait a moment for the others to hear."""
        said = json.dumps([asdict(failure) for failure in failures])
        try:
            self._store.set(f"{_FAILED}.{self._machine}", said)
            self._store.add(_FAILED, 1)
        except DistError:  # the master has gone
            return
        until = time.monotonic() + _LISTEN
        while time.monotonic() < until:
            if self._count(_FAILED) + self._count(_HEARD) >= self._machines:
                break
            time.sleep(_PAUSE)

    def hear(self) -> list[Failure]:
        """The failures of the other machines, so far."""
        found: list[Failure] = []
        if not self.is_over():
            return found
        try:
            for machine in range(self._machines):
                key = f"{_FAILED}.{machine}"
                if machine != self._machine and self._store.check([key]):
                    found += map(_failure, json.loads(self._store.get(key)))
            self._store.add(_HEARD, 1)
        except DistError:
            pass
        return found

    def finish(self) -> None:
        """This machine is done: wait until all are, since they may need the master's store."""
        until = time.monotonic() + _FINISH
        try:
            self._store.add(_DONE, 1)
        except DistError:
            return
        while time.monotonic() < until and not self.is_over():
            if not 0 <= self._count(_DONE) < self._machines:
                break
            time.sleep(_PAUSE)

    def _count(self, key: str) -> int:
        """How many have said so; -1 if the master has gone."""
        try:
            return self._store.add(key, 0)
        except DistError:
            return -1


def _failure(values: dict[str, object]) -> Failure:
    frames = values["frames"]
    assert isinstance(frames, list)
    return Failure(**{**values, "frames": tuple(Frame(**frame) for frame in frames)})  # type: ignore[arg-type]
