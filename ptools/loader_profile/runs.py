"""Single runs of a loader, each in a process of its own, against the clock of the budget."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from ptools.errors import PtoolsError
from ptools.loader_profile import steady
from ptools.loader_profile.blame import explained
from ptools.loader_profile.cold import evict
from ptools.loader_profile.isolate import PATIENCE, RunError, isolated
from ptools.loader_profile.observe import How, Observation, observe
from ptools.loader_profile.rebuild import rebuilt
from ptools.loader_profile.report import Settings, Trial
from ptools.loader_profile.threads import limit_threads

Result = TypeVar("Result")
TURNS = 3
_SURE = 1.03  # in every turn


class Runs:
    """Runs of one loader, and how much time is left for more."""

    def __init__(self, loader: DataLoader[Any], budget: float, evicted: Sequence[Path]) -> None:
        self.loader = loader
        self.seconds = budget / 25  # of one
        self.how = How()
        self.warnings: list[str] = []
        self._end = time.monotonic() + budget
        self._took = 0.0  # the one before
        self._evicted = evicted

    def is_time(self, runs: int) -> bool:
        """Whether the budget has room for so many runs like the one before."""
        return time.monotonic() + self._took * runs < self._end

    def trial(
        self,
        settings: Settings,
        step: float = 0.0,
        seconds: float | None = None,
        init: Callable[[int], None] | None = None,
    ) -> Trial:
        """One uninstrumented run."""
        seconds = seconds or self.seconds
        return self.isolated(partial(_steady, self.loader, settings, seconds, step, init))

    def turns(
        self, ours: Settings, theirs: Settings, init: Callable[[int], None] | None = None
    ) -> tuple[float, ...]:
        """The gain of other settings, by turn; the last turn is left out if time is up."""
        seconds = self.seconds / 2
        ratios: list[float] = []
        while len(ratios) < TURNS - (not self.is_time(2)):
            before = self.trial(ours, seconds=seconds)
            after = self.trial(theirs, seconds=seconds, init=init)
            ratios.append(after.quiet_rate / before.quiet_rate)
        return tuple(ratios)

    def look(self, settings: Settings, seconds: float, batch_samples: float) -> Observation:
        """A run in which the stages are timed."""

        def run() -> Observation:
            arguments = self.loader, settings, seconds, batch_samples, self.how
            return self.isolated(partial(observe, *arguments))

        try:
            return run()
        except PtoolsError:
            if not self.how.transforms:
                raise
        # Not every transform can be called through something that times it.
        self.how = replace(self.how, transforms=False)
        observation = run()
        self.warnings.append(
            "the transforms do not work when each is timed: they count as dataset code"
        )
        return observation

    def isolated(self, function: Callable[[], Result]) -> Result:
        """What a function returns in a process of its own; its failure explained."""
        began = time.monotonic()
        if self._evicted:
            evict(self._evicted)
        try:
            return isolated(function, PATIENCE + 4 * self.seconds)
        except RunError as error:
            raise explained(error, self.loader) from error
        finally:
            self._took = time.monotonic() - began


def _steady(
    loader: DataLoader[Any],
    settings: Settings,
    seconds: float,
    step: float,
    init: Callable[[int], None] | None,
) -> Trial:
    return steady.run(rebuilt(loader, settings, worker_init_fn=init), settings, seconds, step)


def without_threads(loader: DataLoader[Any], worker_id: int) -> None:
    if loader.worker_init_fn is not None:
        loader.worker_init_fn(worker_id)
    limit_threads()


def certain(turns: Iterable[float]) -> float:
    """The gain, if every turn had it."""
    ratios = list(turns)
    return median(ratios) if ratios and min(ratios) > _SURE else 1.0
