"""What a profile of a loader holds. Times are in seconds, rates in samples per second."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

KINDS = ("storage", "decode", "transform", "dataset code", "collate", "transfer")


@dataclass(frozen=True)
class Settings:
    """The arguments of a DataLoader that decide about its speed."""

    num_workers: int
    batch_size: int | None = None
    prefetch_factor: int | None = None  # None without workers
    persistent_workers: bool = False
    pin_memory: bool = False
    in_order: bool = True

    def with_workers(self, num_workers: int) -> "Settings":
        """The same with another number of workers."""
        prefetch = (self.prefetch_factor or 2) if num_workers else None
        lasting = self.persistent_workers and num_workers > 0
        return replace(
            self, num_workers=num_workers, prefetch_factor=prefetch, persistent_workers=lasting
        )

    def arguments(self) -> str:
        """What to paste into the call of DataLoader."""
        words = [f"num_workers={self.num_workers}"]
        if self.num_workers:
            words.append(f"prefetch_factor={self.prefetch_factor}")
        if self.persistent_workers and self.num_workers:
            words.append("persistent_workers=True")
        if not self.in_order:
            words.append("in_order=False")
        if self.pin_memory:
            words.append("pin_memory=True")
        return ", ".join(words)


@dataclass(frozen=True)
class Wait:
    """How long `next()` kept the consumer."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class Trial:
    """One uninstrumented run in the steady state, or with a consumer that takes `step` a batch."""

    settings: Settings
    rate: float
    low: float  # of the 95 % interval of `rate`
    high: float
    batches: int
    seconds: float
    batch_samples: float
    wait: Wait
    startup: float  # until the first batch
    main_run: float  # a batch, on a core, of the thread that iterates
    worker_run: float  # a batch, on a core, of all worker processes and their threads
    others: float  # cores that other processes used meanwhile
    quiet_rate: float  # an estimate: `rate`, had they used none
    step: float = 0.0

    @property
    def stall(self) -> float:
        """The share of its time that a consumer with this step waits."""
        return self.wait.mean / (self.wait.mean + self.step)


@dataclass(frozen=True)
class Stage:
    """A part of the work, in one worker, by the kernel's clocks of its thread; per sample."""

    name: str
    kind: str  # one of KINDS
    calls: float  # a sample
    run: float  # on a core
    ready: float  # no core was free
    waiting: float  # for a disk, the network, a lock, a sleep
    without: float | None = None  # the rate at the current settings if this cost nothing


@dataclass(frozen=True)
class Demand:
    """What one batch asks of the machine: the input of the model."""

    run: float  # of the worker's loop, on a core
    waiting: float  # of the worker's loop, for what is no core
    helpers: float  # of the worker's other threads, on a core
    main: float  # of the consumer's thread: to receive the batch
    alone: float  # on a core, if all is done in the consumer's process


@dataclass(frozen=True)
class Batch:
    """What a batch weighs."""

    samples: int
    tensors: int
    bytes: int
    shared_bytes: int  # of /dev/shm, in flight at the current settings
    shm_free: int | None


@dataclass(frozen=True)
class Verdict:
    """What holds the loader back."""

    kind: str
    part: str | None  # the name of the transform, for "transform"
    evidence: str
    action: str
    gain: float  # the rate afterwards as a ratio to the current one; 1.0 if nothing is to be won


@dataclass(frozen=True)
class Advice:
    """The settings to paste."""

    settings: Settings
    gain: float | None  # the rate with them as a ratio to the current one, if it was measured


@dataclass(frozen=True)
class Line:
    """A line of the user's code and its share of a worker's time."""

    file: str
    line: int
    source: str
    share: float


@dataclass(frozen=True)
class Transfer:
    """To a GPU, a batch: from pageable and from pinned memory."""

    device: str
    pageable: float
    pinned: float


@dataclass(frozen=True)
class Span:
    """Something that took place, for a trace. Times are those of `time.perf_counter`."""

    lane: str  # "worker 0" or "main"
    name: str  # "fetch", "collate", "wait"
    start: float
    end: float
    batch: int


@dataclass(frozen=True)
class LoaderProfile:
    """What `profile_loader` found. What was not measured is None or empty."""

    target: str
    cores: int
    clocks: int  # 3 on Linux; 2 where the kernel does not tell ready from waiting
    current: Trial
    batches_per_epoch: int | None = None
    batch: Batch | None = None
    with_step: Trial | None = None  # the current settings with a consumer that takes its step
    stages: tuple[Stage, ...] = ()
    demand: Demand | None = None
    overhead: float | None = None  # CPU of a batch when instrumented, as a ratio to without
    predicted: dict[int, float] = field(default_factory=dict)  # the rate by number of workers
    trials: tuple[Trial, ...] = ()  # of the search, in the order of the runs
    best: Trial | None = None  # of the numbers of workers; None if the current one is not beaten
    gain: float | None = None  # of `best` over the current settings, from runs that took turns
    gain_certain: bool = False  # it was better, or worse, in every turn
    verdict: Verdict | None = None
    advice: Advice | None = None  # None if the current settings are as good
    lines: tuple[Line, ...] = ()
    transfer: Transfer | None = None
    warnings: tuple[str, ...] = ()
    interrupted: bool = False
    spans: tuple[Span, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON takes it; without the spans, which `--trace` writes."""
        values = asdict(self)
        del values["spans"]
        values["predicted"] = {str(workers): rate for workers, rate in self.predicted.items()}
        if self.with_step is not None:
            values["with_step"]["stall"] = self.with_step.stall
        return values
