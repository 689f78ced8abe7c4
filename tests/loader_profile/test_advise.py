"""The settings that are advised, from facts made by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ptools.loader_profile.advise import advise
from ptools.loader_profile.facts import Facts
from ptools.loader_profile.report import Advice, Settings, Stage, Trial, Verdict
from ptools.loader_profile.verdict import decide

Make = Callable[..., Facts]

NOW = Settings(4, 10, 2)
VERDICTS = [
    "consumer",
    "start-up",
    "head-of-line",
    "too many workers or threads",
    "serialised",
    "too few workers",
    "storage",
    "transform",
    "transfer",
    "balanced",
]


def told(kind: str, gain: float = 1.5) -> Verdict:
    return Verdict(kind, None, "", "", gain)


def decided(facts: Facts) -> Advice | None:
    return advise(facts, decide(facts))


@pytest.fixture
def short(trial: Callable[..., Trial]) -> dict[str, Any]:
    """Epochs of one second, before each of which the workers take half a second to start."""
    return {"epoch": 1.0, "current": trial(NOW, startup=0.5)}


def test_settings_that_nothing_beats_stay(facts: Make) -> None:
    assert decided(facts()) is None


def test_workers_that_were_too_few_become_more(better: Make) -> None:
    assert decided(better(8, 1.9)) == Advice(NOW.with_workers(8), 1.9)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_that_were_too_many_become_fewer(better: Make, workers: int) -> None:
    assert decided(better(workers, 1.5)) == Advice(NOW.with_workers(workers), 1.5)


def test_workers_that_crowd_the_cores_become_as_few_as_the_model_asks_for(
    facts: Make, trial: Callable[..., Trial]
) -> None:
    """No run has shown what these few would give: no gain is promised."""
    crowded = facts(
        current=trial(NOW.with_workers(16)),
        ready=0.7,
        predicted={workers: 100.0 * min(workers, 4) for workers in range(33)},
    )
    assert decided(crowded) == Advice(NOW, None)


def test_the_gain_of_few_workers_is_told_if_it_was_measured(
    better: Make, trial: Callable[..., Trial]
) -> None:
    crowded = better(
        4,
        1.02,
        current=trial(NOW.with_workers(16)),
        ready=0.7,
        predicted={workers: 100.0 * min(workers, 4) for workers in range(33)},
    )
    assert decided(crowded) == Advice(NOW, 1.02)


def test_threads_are_no_matter_of_the_settings(facts: Make) -> None:
    assert decided(facts(one_thread=1.5)) is None


def test_reads_that_wait_get_more_workers_if_these_were_faster(better: Make) -> None:
    slow = Stage("read", "storage", 1.0, 0.0, 0.0, 0.09, 300.0)
    assert decided(better(8, 1.9, stages=(slow,))) == Advice(NOW.with_workers(8), 1.9)
    no_gain = better(8, 0.8, stages=(slow,))
    assert decide(no_gain).kind == "storage"
    assert decided(no_gain) is None


def test_rare_slow_samples_need_more_batches_ahead_or_another_order(facts: Make) -> None:
    assert decided(facts(any_order=1.4)) == Advice(replace(NOW, in_order=False), None)
    deeper = Advice(replace(NOW, prefetch_factor=8), None)
    assert decided(facts(any_order=1.4, deeper_gain=1.4)) == deeper
    assert decided(facts(any_order=1.5, deeper_gain=1.4)) == deeper


def test_no_workers_are_advised_where_sending_costs_more_than_they_save(better: Make) -> None:
    sending = Stage("queue", "transfer", 1.0, 0.08, 0.0, 0.0, 400.0)
    assert decided(better(0, 5.0, stages=(sending,))) == Advice(Settings(0, 10), 5.0)


@pytest.mark.parametrize("kind", ["consumer", "serialised"])
@pytest.mark.parametrize("workers", [0, 1, 8])
def test_no_other_number_of_workers_is_advised_where_it_is_not_what_counts(
    better: Make, short: dict[str, Any], kind: str, workers: int
) -> None:
    assert advise(better(workers, 2.0), told(kind)) is None
    once = advise(better(workers, 2.0, **short), told(kind))
    assert once == Advice(replace(NOW, persistent_workers=True), None)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_fewer_workers_must_surely_be_better(better: Make, workers: int) -> None:
    assert decided(better(workers, 1.06, sure_gain=1.0)) is None
    assert decided(better(workers, 1.04)) is None
    assert decided(better(workers, 1.06)) == Advice(NOW.with_workers(workers), 1.06)


def test_more_workers_are_not_advised_for_next_to_nothing(better: Make) -> None:
    assert decided(better(8, 1.06)) is None


def test_workers_that_start_in_every_short_epoch_are_to_be_kept(
    facts: Make, better: Make, short: dict[str, Any]
) -> None:
    """What that gains was reckoned, not measured."""
    assert decided(facts(**short)) == Advice(replace(NOW, persistent_workers=True), None)
    more = replace(NOW.with_workers(8), persistent_workers=True)
    assert decided(better(8, 1.9, **short)) == Advice(more, 1.9)


@pytest.mark.parametrize("kind", VERDICTS)
def test_workers_that_do_not_exist_are_never_kept(
    better: Make, short: dict[str, Any], trial: Callable[..., Trial], kind: str
) -> None:
    """DataLoader refuses persistent_workers=True with num_workers=0."""
    lasting = trial(replace(NOW, persistent_workers=True), startup=0.5)
    for changes in (short, {"epoch": 1.0, "current": lasting}):
        advice = advise(better(0, 2.0, **changes), told(kind))
        if advice is not None and advice.settings.num_workers == 0:
            assert not advice.settings.persistent_workers
            assert "persistent" not in advice.settings.arguments()


@pytest.mark.parametrize("kind", VERDICTS)
@pytest.mark.parametrize("workers", [0, 2, 8])
def test_a_gain_is_only_promised_for_settings_that_were_measured(
    better: Make, short: dict[str, Any], kind: str, workers: int
) -> None:
    """Those of the best trial; another order is replayed, not measured."""
    found = better(workers, 2.0, any_order=1.5, **short)
    advice = advise(found, told(kind))
    assert advice is not None and found.best is not None
    measured = {found.best.settings: 2.0}
    asked = replace(advice.settings, persistent_workers=False)
    assert advice.gain == measured.get(asked)
