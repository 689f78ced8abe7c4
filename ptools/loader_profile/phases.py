"""The measurements of one profile, each in a process of its own, within the budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from torch.utils.data import DataLoader

from ptools.cores import usable_cores
from ptools.errors import PtoolsError
from ptools.loader_profile import batch, stages, steady
from ptools.loader_profile.model import predict
from ptools.loader_profile.observe import Observation
from ptools.loader_profile.rebuild import settings_of
from ptools.loader_profile.report import Batch, Demand, Settings, Trial
from ptools.loader_profile.runs import TURNS, Runs, certain, without_threads
from ptools.loader_profile.search import chosen, next_workers

_CHEAP = 50e-6  # seconds a sample: below it the clocks would be most of what they measure
_MOST_WORKERS = 32
_BLURRED = 0.7  # of the rate that a busy machine would give if it were not
_HIDDEN = 0.3  # of a worker's own run


@dataclass
class Findings:
    """What is known so far: Ctrl-C may come at any time."""

    batch: Batch | None = None
    current: Trial | None = None
    with_step: Trial | None = None
    alone: Observation | None = None  # without workers
    single: Trial | None = None  # with one, and
    worker: Observation | None = None  # the same observed
    crowd: Observation | None = None  # with several
    demand: Demand | None = None
    predicted: dict[int, float] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    turns: tuple[float, ...] = ()  # the gain of `best`, by turn
    one_thread: float = 1.0
    observed_lines: Observation | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def is_busy(self) -> bool:
        """Whether other processes took much of the machine meanwhile."""
        trials = [one for one in (self.current, self.single, *self.trials) if one is not None]
        return median(one.others for one in trials) > steady.BUSY * usable_cores()


class Profiler:
    """Measures one DataLoader; `found` has what came of it."""

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        step: float,
        budget: float,
        evicted: Sequence[Path],
        say: Callable[[str], None],
    ) -> None:
        self.settings = settings_of(loader)
        self._runs = Runs(loader, budget, evicted)
        self.found = Findings(warnings=self._runs.warnings)
        self._step = step
        self._say = say

    def describe(self) -> None:
        """What a batch weighs; whether the shared memory suffices for the settings."""
        self._say("the first batch")
        draw = partial(batch.first_batch, self._runs.loader, self.settings)
        try:
            self.found.batch = self._runs.isolated(partial(draw, self.settings.with_workers(0)))
        except PtoolsError:
            if not self.settings.num_workers:
                raise
            # What is opened in a worker_init_fn is there in workers alone.
            self.found.batch = self._runs.isolated(partial(draw, self.settings.with_workers(1)))
        batch.check(self.found.batch, self.settings)

    def measure(self) -> None:
        """The current settings."""
        self._say(f"the rate at {self.settings.arguments()}")
        self.found.current = self._runs.trial(self.settings)
        if self._step:
            self._say(f"the same with a step of {self._step * 1e3:g} ms")
            self.found.with_step = self._runs.trial(self.settings, step=self._step)

    def take_apart(self) -> None:
        """The stages, without a worker, with one, and with several."""
        self._say("where the time goes")
        found = self.found
        found.alone = self._alone()
        found.worker = self._look(1, self._runs.seconds)
        single = found.current if self.settings.num_workers == 1 else None
        found.single = single = single or self._runs.trial(self.settings.with_workers(1))
        found.demand = stages.demand(found.alone, found.worker, single)
        several = max(self.settings.num_workers, 2)
        found.predicted = {
            workers: single.batch_samples * predict(found.demand, workers, usable_cores())
            for workers in range(max(_MOST_WORKERS, several) + 1)
        }
        if found.alone is None:
            found.predicted[0] = 0.0
        found.crowd = self._look(several, self._runs.seconds)

    def _alone(self) -> Observation | None:
        """A run without workers; None if the loader needs them."""
        try:
            found = self._look(0, self._runs.seconds / 2)
            if found.total(lambda one: sum(one.samples)) >= _CHEAP * found.batch_samples:
                return found
            self._runs.how = replace(self._runs.how, each_sample=False)
            return self._look(0, self._runs.seconds / 2)
        except PtoolsError:
            if not self.settings.num_workers:
                raise
            return None

    def search(self, workers: Sequence[int] | None, batch_sizes: Sequence[int]) -> None:
        """Other numbers of workers: those given, or as few as show the best; and batch sizes."""
        found = self.found
        assert found.current is not None and found.single is not None
        tried = {trial.settings.num_workers: trial for trial in (found.single, found.current)}
        if workers is None:
            self._search_workers(tried)
        else:
            self._try_all([self.settings.with_workers(count) for count in workers], tried)
        allowed = {
            count: self._believed(trial)
            for count, trial in tried.items()
            if workers is None or count in workers or count == self.settings.num_workers
        }
        best = tried[chosen(allowed)]
        found.best = best if best.settings != self.settings else None
        self._try_all([replace(best.settings, batch_size=size) for size in batch_sizes], {})

    def _search_workers(self, tried: dict[int, Trial]) -> None:
        limit = self._most_workers()
        while self._runs.is_time(1 + 2 * TURNS) or not self.found.trials:
            rates = {count: self._believed(trial) for count, trial in tried.items()}
            following = next_workers(rates, self.found.predicted, limit)
            if following is None:
                return
            trial = self._try(self.settings.with_workers(following))
            if trial is None:
                return
            tried[following] = trial

    def _try_all(self, wanted: Sequence[Settings], tried: dict[int, Trial]) -> None:
        """What the user asked for, as far as the budget goes."""
        left = [one for one in wanted if one.num_workers not in tried]
        while left and self._runs.is_time(1):
            settings = left.pop(0)
            if (trial := self._try(settings)) is not None:
                tried[settings.num_workers] = trial
        if left:
            names = ", ".join(f"{one.num_workers} x {one.batch_size}" for one in left)
            self.found.warnings.append(
                f"the budget ended before these workers x batch size: {names}; --budget gives more"
            )

    def limit_threads(self) -> None:
        """Workers without the threads that libraries start in them, if they do."""
        found, settings = self.found, self.settings
        if found.crowd is None or found.demand is None or not settings.num_workers:
            return
        hidden = stages.hidden_run(found.crowd)
        if hidden > _HIDDEN * found.demand.run:
            self._say("workers without threads of their own")
            turns = self._runs.turns(
                settings, settings, partial(without_threads, self._runs.loader)
            )
            found.one_thread = certain(turns)

    def compare(self) -> None:
        """The best against the current settings, in turns."""
        if self.found.best is not None:
            best = self.found.best.settings
            self._say(f"{best.arguments()} against the current settings")
            self.found.turns = self._runs.turns(self.settings, best)

    def name_lines(self) -> None:
        """The source lines, from a run of its own."""
        self._say("the lines")
        self._runs.how = replace(self._runs.how, lines=True, transforms=False)
        self.found.observed_lines = self._look(
            max(1, self.settings.num_workers), self._runs.seconds
        )

    @property
    def has_lines(self) -> bool:
        """Whether a line of the user's was seen."""
        observed = self.found.observed_lines
        return observed is not None and any(record.lines for record in observed.records)

    def _try(self, settings: Settings) -> Trial | None:
        """A run with other settings; None if the loader does not take them."""
        self._say(f"{settings.arguments()}, batch_size={settings.batch_size}")
        try:
            trial = self._runs.trial(settings)
        except PtoolsError as error:
            self.found.warnings.append(f"with {settings.arguments()}: {error.message}")
            return None
        self.found.trials.append(trial)
        return trial

    def _believed(self, trial: Trial) -> float:
        """The rate to search by: the model's, where a busy machine may be all that it falls short.

        Such a machine gives more of itself to more processes, so that many workers seem to help.
        """
        expected = self.found.predicted.get(trial.settings.num_workers, trial.quiet_rate)
        near = trial.quiet_rate > _BLURRED * expected
        return expected if self.found.is_busy and near else trial.quiet_rate

    def _most_workers(self) -> int:
        assert self.found.batch is not None
        most = max(_MOST_WORKERS, self.settings.num_workers)
        fitting = batch.most_workers(self.found.batch, self.settings)
        return most if fitting is None else max(1, min(most, fitting))

    def _look(self, workers: int, seconds: float) -> Observation:
        assert self.found.current is not None
        samples = self.found.current.batch_samples
        return self._runs.look(self.settings.with_workers(workers), seconds, samples)
