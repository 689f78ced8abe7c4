"""Planted loaders, a look at the processes that they leave, and profiles made by hand."""

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils.data import Dataset

from ptools.loader_profile.facts import Facts
from ptools.loader_profile.render import page
from ptools.loader_profile.report import (
    KINDS,
    Advice,
    Batch,
    Line,
    LoaderProfile,
    Settings,
    Stage,
    Transfer,
    Trial,
    Verdict,
    Wait,
)


class Planted(Dataset[Any]):
    """Samples `[index, 0, 0, 0]`, each of which waits and computes for as long as is said."""

    def __init__(self, length: int, wait: float = 0.0, work: float = 0.0) -> None:
        self.length = length
        self.wait = wait
        self.work = work

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.wait:
            time.sleep(self.wait)
        compute(self.work)
        return torch.tensor([index, 0, 0, 0])


def compute(seconds: float) -> None:
    """Take this much time of a core, whatever else runs on the machine."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Pids:
    """The processes that said that they were there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def note(self, *_: Any) -> None:
        """Say it; also a `worker_init_fn`."""
        (self.folder / f"{os.getpid()}").touch()

    @property
    def noted(self) -> list[int]:
        return sorted(int(file.name) for file in self.folder.iterdir())

    @property
    def alive(self) -> list[int]:
        return [pid for pid in self.noted if _state(pid) not in ("Z", None)]

    def wait_for(self, count: int) -> None:
        until = time.monotonic() + 20
        while len(self.noted) < count:
            assert time.monotonic() < until, "the processes did not start"
            time.sleep(0.01)

    def all_end_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while self.alive and time.monotonic() < until:
            time.sleep(0.01)
        return not self.alive


def _state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


@pytest.fixture
def planted() -> Callable[..., Planted]:
    return Planted


@pytest.fixture
def spin() -> Callable[[float], None]:
    return compute


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Pids]:
    folder = tmp_path / "pids"
    folder.mkdir()
    found = Pids(folder)
    yield found
    for pid in found.alive:
        if pid != os.getpid():
            os.kill(pid, signal.SIGKILL)


def made_trial(settings: Settings, rate: float = 100.0, **changes: Any) -> Trial:
    """A run at this rate, on a machine that nobody else used."""
    made = Trial(
        settings=settings,
        rate=rate,
        low=rate * 0.9,
        high=rate * 1.1,
        batches=300,
        seconds=8.0,
        batch_samples=settings.batch_size or 1,
        wait=Wait(mean=0.04, p50=0.002, p95=0.2, p99=0.25, max=0.3),
        startup=2.0,
        main_run=0.001,
        worker_run=0.05,
        others=0.3,
        quiet_rate=rate,
    )
    return replace(made, **changes)


@pytest.fixture
def trial() -> Callable[..., Trial]:
    return made_trial


@pytest.fixture
def bare() -> LoaderProfile:
    """The least that a profile can hold: 640 samples/s with 2 workers."""
    return LoaderProfile("train.py:loader", 4, 3, made_trial(Settings(2, 32, 2), 640.0))


@pytest.fixture
def full(bare: LoaderProfile) -> LoaderProfile:
    """A profile in which everything was found: 6 workers are better than 2."""
    now = bare.current.settings
    best = made_trial(now.with_workers(6), 960.0)
    return replace(
        bare,
        batches_per_epoch=760,
        batch=Batch(32, 2, 18 << 20, 72 << 20, 64 << 20),
        with_step=made_trial(now, 440.0, step=0.06, wait=Wait(0.02, 0.0, 0.1, 0.1, 0.1)),
        stages=(
            Stage("Blur", "transform", 1, 0.003, 0.001, 0.0, 1500.0),
            Stage("cv2.imread", "decode", 1, 0.0005, 0.0, 0.0005, 660.0),
            Stage("collate", "collate", 1 / 32, 0.0, 0.0, 0.0, None),
        ),
        overhead=1.02,
        predicted={workers: 250.0 * min(workers, 4) for workers in range(17)},
        trials=(
            made_trial(now.with_workers(1), 250.0),
            made_trial(replace(now, batch_size=64), 650.0),
        ),
        best=best,
        gain=1.5,
        gain_certain=True,
        verdict=Verdict("transform", "Blur", "75% of a worker's time", "make it cheaper", 1.6),
        advice=Advice(replace(best.settings, persistent_workers=True), 1.5),
        lines=(Line("/train/aug.py", 33, "    image = blur(image)", 0.71),),
        transfer=Transfer("NVIDIA H200", 0.002, 0.0009),
    )


@pytest.fixture
def shown() -> Callable[..., list[str]]:
    """The lines that a terminal shows of a profile."""

    def show(profile: LoaderProfile, width: int = 200, encoding: str = "utf-8") -> list[str]:
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        Console(file=file, width=width, markup=False, highlight=False).print(page(profile))
        file.seek(0)
        return [line.rstrip() for line in file.read().splitlines()]

    return show


def made_facts(**changes: Any) -> Facts:
    """A loader with 4 workers of which every part takes the same, and nothing is wrong."""
    now = Settings(4, 10, 2)
    values = {
        "current": made_trial(now),
        "with_step": None,
        "stages": tuple(Stage(kind, kind, 1.0, 0.01, 0.0, 0.0, 118.0) for kind in KINDS),
        "best": None,
        "gain": 1.0,
        "sure_gain": 1.0,
        "predicted": dict.fromkeys(range(33), 100.0),
        "cores": 4,
        "busy": False,
        "epoch": 100.0,
        "ready": 0.0,
        "contention": 0.0,
        "contended": (4, 100.0),
        "deeper": replace(now, prefetch_factor=8),
        "deeper_gain": 1.0,
        "any_order": 1.0,
        "disk_bytes": 0.0,
        "one_thread": 1.0,
        "thread_advice": "OMP_NUM_THREADS=1",
    }
    return Facts(**(values | changes))


@pytest.fixture
def facts() -> Callable[..., Facts]:
    return made_facts


@pytest.fixture
def better() -> Callable[..., Facts]:
    """Facts in which another number of workers has this gain, as was predicted."""

    def make(workers: int, gain: float, **changes: Any) -> Facts:
        current = changes.get("current", made_facts().current)
        predicted = dict.fromkeys(range(33), 100.0) | {workers: 100.0 * gain}
        best = made_trial(current.settings.with_workers(workers), 100.0 * gain)
        gains = {"best": best, "gain": gain, "sure_gain": max(gain, 1.0)}
        return made_facts(**(gains | {"predicted": predicted} | changes))

    return make
