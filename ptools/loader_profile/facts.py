"""What was found out about a loader, and what follows from it whatever the verdict."""

from dataclasses import dataclass

from ptools.loader_profile.report import Settings, Stage, Trial

WORTH = 1.1  # a gain below this is not worth a word
BETTER = 1.05  # but other settings cost nothing
_CROWDED = 0.5  # of a sample's time: ready, but no core is free


@dataclass(frozen=True)
class Facts:
    """What was found out, for the rules."""

    current: Trial
    with_step: Trial | None
    stages: tuple[Stage, ...]
    best: Trial | None  # of all that was tried with other numbers of workers
    gain: float  # of `best`, measured in turns
    sure_gain: float  # the same; 1.0 if not every turn showed it
    predicted: dict[int, float]
    cores: int
    busy: bool  # other processes use much of them
    epoch: float | None  # seconds of one, without the start
    ready: float  # the share of a worker's time for which no core is free
    contention: float  # seconds a sample that workers wait for each other
    contended: tuple[int, float] | None  # the workers with which that was seen, and their rate
    deeper: Settings  # the current ones, with more batches ahead
    deeper_gain: float
    any_order: float  # gain of in_order=False
    disk_bytes: float  # a sample, that were read from a disk
    one_thread: float  # gain of workers without threads of their own
    thread_advice: str

    @property
    def start_up_gain(self) -> float:
        """What workers that start once would give, as a ratio of the time of an epoch."""
        settings = self.current.settings
        if self.epoch is None or settings.persistent_workers or not settings.num_workers:
            return 1.0
        return (self.current.startup + self.epoch) / self.epoch


def parts(facts: Facts) -> dict[tuple[str, str], tuple[float, float]]:
    """Seconds a sample and the gain without it: of each kind, and of each transform."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for stage in facts.stages:
        key = stage.kind, stage.name if stage.kind == "transform" else ""
        spent, saved = found.get(key, (0.0, 0.0))
        rate = stage.without if stage.without is not None else facts.current.rate
        saved += 1 - facts.current.rate / rate
        found[key] = spent + stage.run + stage.waiting, saved
    return {key: (spent, 1 / max(1 - saved, 1e-3)) for key, (spent, saved) in found.items()}


def expected_rate(facts: Facts, settings: Settings) -> float:
    """What the model promises."""
    return facts.predicted.get(settings.num_workers, facts.current.rate)


def fewer_workers(facts: Facts) -> int | None:
    """How few workers do better; or as well by the model, if the current ones crowd the cores."""
    count = facts.current.settings.num_workers
    best = facts.best.settings.num_workers if facts.best else count
    if facts.gain >= WORTH and best < count:
        return best or None
    if count <= 2 * facts.cores or facts.ready < _CROWDED:
        return None
    enough = facts.predicted[count] / BETTER
    fewest = min(w for w, rate in facts.predicted.items() if w and rate >= enough)
    refuted = best == fewest and facts.gain < 1 / WORTH and not facts.busy
    return fewest if fewest < count and not refuted else None


def deeper_suffices(facts: Facts) -> bool:
    """Whether it need not come to another order, which changes what is trained on when."""
    return facts.deeper_gain >= WORTH and facts.deeper_gain > facts.any_order / WORTH
