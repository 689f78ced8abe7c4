import multiprocessing
import random
import time
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ptools.loader_profile.search import RUNS, chosen, next_workers

LIMIT = 16
Curve = dict[int, float]


def searched(
    measure: Callable[[int], float], predicted: Curve, current: int, limit: int = LIMIT
) -> Curve:
    """What was tried, as the caller of the search runs it."""
    tried = {workers: measure(workers) for workers in (current, 1)}
    while (workers := next_workers(tried, predicted, limit)) is not None:
        assert workers not in tried and 0 <= workers <= limit
        tried[workers] = measure(workers)
    assert len(tried) <= RUNS
    return tried


def curve(*bounds: float, sharp: float = 50.0, falls: float = 0.0, from_: int = LIMIT) -> Curve:
    """Rates in units of one worker's: a knee below the bounds, a fall after so many workers."""
    rates = {0: 0.95}
    for workers in range(1, LIMIT + 1):
        rate = sum(bound**-sharp for bound in (workers, *bounds)) ** (-1 / sharp)
        rates[workers] = rate / (1 + falls * max(0, workers - from_))
    return rates


def drawn(kind: str, rng: random.Random) -> tuple[Curve, Curve]:
    """A loader's rates and what the model predicts of them."""
    knee, sharp = rng.uniform(1.2, 14), rng.choice([4.0, 8.0, 50.0])
    linear = curve()
    match kind:
        case "bound by cores":
            rates = curve(knee, sharp=sharp)
            return rates, rates
        case "bound by cores the kernel does not see" | "hidden lock":
            return curve(knee, sharp=sharp), linear
        case "bound by the consumer's process":
            return curve(knee, sharp=sharp), curve(knee * rng.uniform(1, 1.2))
        case "bound by latency":
            return linear, linear
        case "falling":
            peak = rng.randint(2, 14)
            return curve(peak + 0.5, falls=rng.uniform(0.03, 0.3), from_=peak), linear
        case "best without workers":
            alone = {0: rng.uniform(1.5, 15)}
            return curve(1.1) | alone, curve(1.1) | {0: alone[0] * rng.uniform(0.8, 1.2)}
    raise ValueError(kind)


KINDS = {  # and the share of searches that may fail if the rates have a standard error of 3 %
    "bound by cores": 0.05,
    "bound by cores the kernel does not see": 0.05,
    "hidden lock": 0.05,
    "bound by the consumer's process": 0.05,
    "bound by latency": 0.03,
    "falling": 0.10,
    "best without workers": 0.0,
}


def qualities(kind: str, noise: float) -> list[float]:
    """The rate that each of many searches ends with, as a share of the best."""
    shares = []
    for seed in range(300):
        rng = random.Random(f"{kind} {seed}")
        rates, predicted = drawn(kind, rng)
        tried = searched(
            lambda workers, rng=rng, rates=rates: rates[workers] * (1 + rng.gauss(0, noise)),
            predicted,
            current=rng.choice([0, 1, 2, 4, 8, 16]),
        )
        shares.append(rates[chosen(tried)] / max(rates.values()))
    return shares


@pytest.mark.parametrize("kind", KINDS)
def test_finds_a_rate_within_5_percent_of_the_best(kind: str) -> None:
    assert min(qualities(kind, noise=0.0)) >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_3_percent_seldom_leads_astray(kind: str) -> None:
    shares = qualities(kind, noise=0.03)
    assert sum(share < 0.95 for share in shares) <= KINDS[kind] * len(shares)
    assert min(shares) > 0.7


def test_the_knee_comes_from_the_plateau_when_the_model_is_blind() -> None:
    tried = searched(curve(4.0).__getitem__, curve(), current=2)
    assert chosen(tried) == 4


def test_no_run_is_spent_where_the_model_was_right() -> None:
    assert set(searched(curve().__getitem__, curve(), current=2)) == {1, 2, 16}


def test_no_workers_are_tried_only_where_they_may_do() -> None:
    photos, numbers = curve(6.0), curve(1.1)
    assert 0 not in searched(photos.__getitem__, photos, current=2)
    assert 0 in searched(numbers.__getitem__, numbers, current=2)


def test_no_workers_are_tried_where_workers_disappoint() -> None:
    tried = searched((curve(0.5) | {0: 0.95}).__getitem__, curve(), current=4)
    assert chosen(tried) == 0


def test_the_smallest_of_equals_is_chosen() -> None:
    assert chosen({8: 100.0, 1: 30.0, 4: 98.5, 3: 96.0}) == 4


def test_the_fewest_are_tried_of_those_that_promise_as_much() -> None:
    predicted = {workers: min(max(workers, 0.95), 3.0) for workers in range(LIMIT + 1)}
    assert next_workers({1: 1.0, 3: 2.5}, predicted, LIMIT) == 4


def test_a_limit_of_one_worker_needs_no_search() -> None:
    assert next_workers({0: 1.0, 1: 1.5}, {0: 1.0, 1: 1.5}, limit=1) is None


class OnVirtualCores(Dataset):
    """Samples that sleep while they hold one of so many tokens, as if it were a core."""

    def __init__(self, cores: int, seconds: float) -> None:
        self.tokens = multiprocessing.get_context("fork").Semaphore(cores)
        self.seconds = seconds

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> torch.Tensor:
        with self.tokens:
            time.sleep(self.seconds)
        return torch.zeros(1)

    def rate(self, workers: int) -> float:
        context = "fork" if workers else None
        batches = iter(DataLoader(self, 2, num_workers=workers, multiprocessing_context=context))
        for _ in range(max(2, 2 * workers)):
            next(batches)
        start = time.perf_counter()
        count = 8 * max(workers, 2)
        for _ in range(count):
            next(batches)
        return count / (time.perf_counter() - start)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_finds_the_knee_of_a_real_loader_on_four_virtual_cores() -> None:
    tried = searched(OnVirtualCores(4, 0.005).rate, curve(), current=2, limit=12)
    assert chosen(tried) >= 4
    assert tried[chosen(tried)] == pytest.approx(4 * tried[1], rel=0.2)
