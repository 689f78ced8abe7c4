from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from statistics import fmean
from types import SimpleNamespace

import pytest

from ptools.loader_profile import replay
from ptools.loader_profile.report import Settings

FOUR = Settings(4, 32, 2)
TAIL = [0.01] * 63 + [0.80]  # one batch in 64 takes 80 times as long


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> Sequence[float]:
    """Six batches, the first and the fourth of which are slow, come in this order."""
    times = [10.0, 1.0, 1.0, 10.0, 1.0, 1.0]

    def draw(seed: int) -> SimpleNamespace:
        number = count()
        return SimpleNamespace(choice=lambda drawn: drawn[next(number)])

    monkeypatch.setattr(replay, "random", SimpleNamespace(Random=draw))
    monkeypatch.setattr(replay, "_BATCHES", len(times))
    return times


def test_a_worker_gets_its_next_batch_once_the_consumer_has_taken_one(
    in_turn: Sequence[float],
) -> None:
    # Worker 0: 0-10, 10-11, 11-12; worker 1: 0-1, 10-20, 20-21; only then the slow one is taken.
    assert replay.period(in_turn, 2, 1) == pytest.approx(21 / 6)


def test_prefetch_lets_a_worker_begin_before(in_turn: Sequence[float]) -> None:
    # Worker 0: 0-10, 10-11, 11-12; worker 1: 0-1, 1-11, 11-12.
    assert replay.period(in_turn, 2, 2) == pytest.approx(12 / 6)


def test_one_worker_takes_one_batch_after_the_other(in_turn: Sequence[float]) -> None:
    assert replay.period(in_turn, 1, 2) == pytest.approx(24 / 6)


def test_in_any_order_no_worker_waits(in_turn: Sequence[float]) -> None:
    assert replay.period(in_turn, 3, None) == pytest.approx(24 / 3 / 6)


@pytest.mark.parametrize("factor", [1, 2, None])
def test_workers_share_equal_batches(factor: int | None) -> None:
    assert replay.period([0.02], 4, factor) == pytest.approx(0.005)


def test_in_any_order_the_period_is_the_mean_a_worker() -> None:
    times = [0.01, 0.02, 0.03]
    assert replay.period(times, 4, None) == pytest.approx(fmean(times) / 4, rel=0.02)


def test_the_order_costs_less_the_deeper_the_prefetch() -> None:
    periods = [replay.period(TAIL, 4, factor) for factor in (1, 2, 4, 8, 16, None)]
    assert periods == sorted(periods, reverse=True)
    assert periods[0] > 1.5 * periods[-1]


def test_a_slow_batch_holds_up_the_others() -> None:
    deeper, any_order = replay.gains(TAIL, FOUR, 0.0)
    assert 1.1 < deeper < any_order
    assert any_order > 1.5


def test_the_gain_is_that_over_the_present_prefetch() -> None:
    now = replay.period(TAIL, 4, 2)
    deeper, any_order = replay.gains(TAIL, FOUR, 0.0)
    assert deeper == pytest.approx(now / replay.period(TAIL, 4, 2 * replay.DEEPER))
    assert any_order == pytest.approx(now / replay.period(TAIL, 4, None))
    assert replay.gains(TAIL, replace(FOUR, prefetch_factor=16), 0.0)[1] < any_order


@pytest.mark.parametrize("times", [[0.01], [0.01] * 50, [0.01, 0.02, 0.03] * 9])
def test_no_order_is_better_if_no_batch_stands_out(times: Sequence[float]) -> None:
    assert replay.gains(times, FOUR, 0.0) == (1.0, 1.0)


@pytest.mark.parametrize(
    "settings",
    [
        replace(FOUR, in_order=False),
        replace(FOUR, num_workers=1),
        replace(FOUR, num_workers=0, prefetch_factor=None),
    ],
)
def test_no_gain_where_no_batch_waits_for_another(settings: Settings) -> None:
    assert replay.gains(TAIL, settings, 0.0) == (1.0, 1.0)


def test_no_order_gives_more_than_the_cores_allow() -> None:
    now, free = replay.period(TAIL, 4, 2), replay.period(TAIL, 4, None)
    between = (now + free) / 2
    assert replay.gains(TAIL, FOUR, between)[1] == pytest.approx(now / between)
    assert replay.gains(TAIL, FOUR, 2 * now) == (1.0, 1.0)
