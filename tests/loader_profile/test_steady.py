import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from ptools.errors import PtoolsError
from ptools.loader_profile import steady
from ptools.loader_profile.rebuild import rebuilt, settings_of
from ptools.loader_profile.report import Settings, Trial


def trial_of(loader: DataLoader[Any], step: float = 0.0, seconds: float = 0.3) -> Trial:
    """The faster of two: other processes only ever slow a loader down."""
    settings = settings_of(loader)
    return max(
        (steady.run(rebuilt(loader, settings), settings, seconds, step) for _ in range(2)),
        key=lambda trial: trial.rate,
    )


def slow_start(seconds: float, worker: int) -> None:
    time.sleep(seconds)


def nothing(samples: list[Any]) -> None:
    return None


class Stream(IterableDataset[Any]):
    """The numbers to 100, each after 10 ms."""

    def __iter__(self) -> Iterator[int]:
        for number in range(100):
            time.sleep(10e-3)
            yield number


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_rate_is_that_of_the_workers_together(workers: int, planted: Any) -> None:
    loader = DataLoader(planted(60, wait=20e-3), batch_size=2, num_workers=workers)
    trial = trial_of(loader)
    assert trial.rate == pytest.approx(50 * max(workers, 1), rel=0.1)
    assert trial.low <= trial.rate <= trial.high
    assert trial.batch_samples == pytest.approx(2)


def test_batches_that_arrive_in_bursts_are_counted_right(planted: Any) -> None:
    loader = DataLoader(planted(400, wait=10e-3), batch_size=4, num_workers=3)
    trial = trial_of(loader)
    assert trial.rate == pytest.approx(300, rel=0.1)
    assert trial.wait.p50 < trial.wait.mean * 1.5 < trial.wait.max * 1.5


def test_a_last_batch_that_is_smaller_counts_for_what_it_is(planted: Any) -> None:
    loader = DataLoader(planted(5, wait=10e-3), batch_size=4)
    assert trial_of(loader).rate == pytest.approx(100, rel=0.1)


def test_a_stream_has_the_rate_of_its_samples() -> None:
    assert trial_of(DataLoader(Stream(), batch_size=4)).rate == pytest.approx(100, rel=0.1)


def test_single_samples_are_counted_one_by_one(planted: Any) -> None:
    loader = DataLoader(planted(60, wait=10e-3), batch_size=None)
    assert trial_of(loader).rate == pytest.approx(100, rel=0.1)


def test_batches_may_be_none(planted: Any) -> None:
    loader = DataLoader(planted(60, wait=10e-3), batch_size=4, collate_fn=nothing)
    assert trial_of(loader).rate == pytest.approx(100, rel=0.1)


def test_a_consumer_waits_for_what_a_slow_loader_takes(planted: Any) -> None:
    loader = DataLoader(planted(60, wait=10e-3), batch_size=4)
    trial = trial_of(loader, step=0.02)
    assert trial.wait.mean == pytest.approx(0.04, rel=0.1)
    assert trial.stall == pytest.approx(2 / 3, rel=0.1)


def test_a_consumer_slower_than_its_workers_does_not_wait(planted: Any) -> None:
    loader = DataLoader(planted(60, wait=5e-3), batch_size=4, num_workers=2)
    trial = trial_of(loader, step=0.03)
    assert trial.stall < 0.1
    assert trial.rate == pytest.approx(4 / 0.03, rel=0.1)


def test_the_start_of_the_workers_is_told_apart(planted: Any) -> None:
    init = partial(slow_start, 0.4)
    dataset = planted(60, wait=10e-3)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, worker_init_fn=init)
    trial = trial_of(loader)
    assert 0.35 < trial.startup < 0.9
    assert trial.rate == pytest.approx(200, rel=0.1)


def test_the_time_on_a_core_is_that_of_each_process(
    planted: Any, spin: Callable[[float], None]
) -> None:
    def collate(samples: list[Any]) -> torch.Tensor:
        spin(0.02)
        return torch.stack(samples)

    alone = trial_of(DataLoader(planted(60), batch_size=4, collate_fn=collate))
    assert alone.main_run == pytest.approx(0.02, rel=0.1)
    assert alone.worker_run == 0.0
    with_one = trial_of(DataLoader(planted(60), batch_size=4, collate_fn=collate, num_workers=1))
    assert 0.018 < with_one.worker_run < 0.03  # with what it takes to send a batch
    assert with_one.main_run < 0.005


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_an_iterable_of_few_batches_has_a_rate(count: int) -> None:
    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(count):
            time.sleep(0.05)
            yield torch.zeros(4, 2), torch.zeros(4)

    trial = steady.run(batches(), Settings(0), 1.0)
    assert trial.rate == pytest.approx(80, rel=0.1)
    assert 0 < trial.low <= trial.rate <= trial.high


def test_an_iterable_without_batches_is_an_error() -> None:
    with pytest.raises(PtoolsError, match="no batch"):
        steady.run([], Settings(0), 1.0)


def test_it_takes_the_time_that_it_is_given(planted: Any) -> None:
    loader = DataLoader(planted(60, wait=5e-3), batch_size=4)
    began = time.perf_counter()
    trial_of(loader, seconds=0.5)
    assert 0.5 < time.perf_counter() - began < 1.6


def test_a_loader_too_slow_for_the_time_still_has_a_rate(planted: Any) -> None:
    trial = trial_of(DataLoader(planted(60, wait=0.1), batch_size=1), seconds=0.05)
    assert trial.rate == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_interval_holds_the_truth_19_times_of_20(rounds: int) -> None:
    source = random.Random(0)
    held = 0
    for _ in range(1000):
        arrivals = [0.0]
        for _ in range(48):
            arrivals.append(arrivals[-1] + source.gauss(1.0, 0.3))
        period, half = steady._interval(arrivals, rounds)
        held += abs(period - 1.0) <= half
    assert 920 <= held <= 975


@pytest.mark.parametrize(
    ("batch", "size", "samples"),
    [
        (torch.zeros(5, 2), 8, 8),
        ((torch.zeros(5, 2), torch.zeros(5)), None, 5),
        ({"image": torch.zeros(5, 2), "label": torch.zeros(5)}, None, 5),
        (torch.zeros(5, 2), None, 1),
        ((torch.zeros(3, 2, 2), torch.tensor(1)), None, 1),
        ("text", None, 1),
        (None, None, 1),
    ],
)
def test_the_samples_of_a_batch(batch: Any, size: int | None, samples: int) -> None:
    assert steady.samples_in(batch, size) == samples
