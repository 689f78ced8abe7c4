"""The rules that name what holds a loader back, from facts made by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ptools.loader_profile.facts import Facts
from ptools.loader_profile.report import KINDS, Settings, Stage, Trial, Wait
from ptools.loader_profile.verdict import decide

Make = Callable[..., Facts]
MakeTrial = Callable[..., Trial]

NOW = Settings(4, 10, 2)
STEP = 0.1


def stage(
    kind: str, name: str = "", run: float = 0.0, waiting: float = 0.0, gain: float = 1.0
) -> Stage:
    return Stage(name or kind, kind, 1.0, run, 0.0, waiting, 100.0 * gain)


@pytest.fixture
def stalled(trial: MakeTrial) -> Callable[[float], Trial]:
    """A consumer whose step waits this share of the time."""

    def make(share: float) -> Trial:
        mean = STEP * share / (1 - share)
        return trial(NOW, step=STEP, wait=Wait(mean, mean, mean, mean, mean))

    return make


def test_a_loader_of_equal_parts_is_balanced(facts: Make) -> None:
    found = decide(facts())
    assert (found.kind, found.part, found.gain) == ("balanced", None, 1.0)
    assert "takes 17%" in found.evidence


@pytest.mark.parametrize("kind", KINDS)
def test_the_part_that_takes_the_time_is_named(facts: Make, kind: str) -> None:
    parts = (stage(kind, "Blur", run=0.06, gain=2.5), stage("decode", run=0.03, gain=1.4))
    found = decide(facts(stages=parts))
    assert found.kind == kind
    assert found.part == ("Blur" if kind == "transform" else None)
    assert found.gain > 2
    assert found.action and found.evidence


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_not_named_whose_absence_buys_less_than_a_tenth(facts: Make, kind: str) -> None:
    assert decide(facts(stages=(stage(kind, run=0.1, gain=1.09),))).kind == "balanced"
    assert decide(facts(stages=(stage(kind, run=0.1, gain=1.11),))).kind == kind


def test_a_part_is_not_named_that_is_a_small_part(facts: Make) -> None:
    parts = [stage("transform", name, run=0.01, gain=1.5) for name in ("A", "B", "C")]
    assert decide(facts(stages=tuple(parts))).kind == "balanced"


def test_parts_of_one_kind_count_together_but_transforms_apart(facts: Make) -> None:
    two = [stage("decode", name, run=0.03, gain=1.4) for name in ("PIL.open", "PIL.load")]
    rest = [stage("transform", name, run=0.02, gain=1.2) for name in ("A", "B")]
    assert decide(facts(stages=(*two, *rest))).kind == "decode"


def test_what_the_step_hides_is_no_matter(facts: Make, stalled: Callable[[float], Trial]) -> None:
    slow = (stage("transform", "Blur", run=0.1, gain=9.0),)
    assert decide(facts(stages=slow, with_step=stalled(0.05))).kind == "consumer"
    assert decide(facts(stages=slow, with_step=stalled(0.2))).kind == "transform"


def test_a_busy_machine_is_not_taken_for_a_loader_that_is_too_slow(
    facts: Make, stalled: Callable[[float], Trial]
) -> None:
    """A step of 100 ms asks for 100 samples/s, of which the model promises half as many again."""
    able = {"with_step": stalled(0.5), "predicted": dict.fromkeys(range(33), 151.0)}
    assert decide(facts(**able, busy=True)).kind == "consumer"
    assert decide(facts(**able, busy=False)).kind == "balanced"


@pytest.mark.parametrize("workers", [2, 3])
def test_fewer_workers_that_are_faster_are_too_many(better: Make, workers: int) -> None:
    verdict = decide(better(workers, 1.5))
    assert (verdict.kind, verdict.gain) == ("too many workers or threads", 1.5)
    assert verdict.action == f"num_workers={workers}"


def test_workers_without_a_core_are_too_many(better: Make, trial: MakeTrial) -> None:
    crowd = trial(NOW.with_workers(16))
    assert decide(better(4, 1.0, current=crowd, ready=0.7)).kind == "too many workers or threads"
    assert decide(better(4, 1.0, current=crowd, ready=0.2)).kind == "balanced"


def test_threads_of_libraries_are_too_many(facts: Make) -> None:
    verdict = decide(facts(one_thread=1.5))
    assert verdict.kind == "too many workers or threads"
    assert verdict.action == "OMP_NUM_THREADS=1"
    assert decide(facts(one_thread=1.09)).kind == "balanced"


def test_threads_are_not_named_where_other_workers_surely_gain_more(better: Make) -> None:
    assert decide(better(8, 1.6, one_thread=1.5)).kind == "too few workers"
    assert decide(better(8, 1.6, one_thread=1.5, sure_gain=1.0)).action == "OMP_NUM_THREADS=1"


def test_more_workers_that_are_faster_were_too_few(better: Make) -> None:
    verdict = decide(better(8, 1.9))
    assert (verdict.kind, verdict.gain) == ("too few workers", 1.9)
    assert verdict.action == "num_workers=8"
    assert decide(better(8, 1.05)).kind == "balanced"


def test_more_workers_than_the_model_has_use_for_are_not_too_few(better: Make) -> None:
    flat = dict.fromkeys(range(33), 100.0)
    assert decide(better(8, 1.9, predicted=flat)).kind == "balanced"


def test_more_workers_than_wait_for_storage_are_its_cure(better: Make) -> None:
    slow = (stage("storage", waiting=0.09, gain=3.0), stage("decode", run=0.01, gain=1.1))
    verdict = decide(better(8, 1.9, stages=slow))
    assert verdict.kind == "storage"
    assert "num_workers=8" in verdict.action


def test_only_what_came_from_a_disk_is_said_to(facts: Make) -> None:
    slow = (stage("storage", waiting=0.09, gain=3.0),)
    assert "no disk of this machine" in decide(facts(stages=slow)).evidence
    assert "come from the disk" in decide(facts(stages=slow, disk_bytes=2e5)).evidence


def test_workers_that_wait_for_each_other_are_serialised(facts: Make) -> None:
    waiting = {"contended": (4, 60.0), "contention": 0.05}
    found = decide(facts(**waiting))
    assert found.kind == "serialised"
    assert found.gain == pytest.approx(100 / 60)
    assert decide(facts(**waiting | {"contention": 0.001})).kind == "balanced"
    assert decide(facts(**waiting | {"contended": (4, 90.0)})).kind == "balanced"
    assert decide(facts(**waiting | {"contended": None})).kind == "balanced"


def test_workers_that_wait_for_one_disk_are_held_up_by_the_storage(facts: Make) -> None:
    reading = (stage("storage", waiting=0.05, gain=2.0), stage("decode", run=0.01))
    waiting = {"contended": (4, 60.0), "contention": 0.05, "stages": reading}
    assert decide(facts(**waiting)).kind == "serialised"
    assert decide(facts(**waiting, disk_bytes=2e5)).kind == "storage"


def test_rare_slow_samples_are_head_of_line(facts: Make) -> None:
    verdict = decide(facts(any_order=1.4))
    assert (verdict.kind, verdict.gain) == ("head-of-line", 1.4)
    assert "in_order=False" in verdict.action
    assert decide(facts(any_order=1.09)).kind == "balanced"


def test_more_batches_ahead_are_better_than_another_order_if_they_do(facts: Make) -> None:
    verdict = decide(facts(any_order=1.5, deeper_gain=1.4))
    assert "prefetch_factor=8" in verdict.action
    assert verdict.gain == 1.4, "that of what is named, not of the other order"
    assert "about 1.4 x" in verdict.evidence
    assert "in_order=False" in decide(facts(any_order=1.6, deeper_gain=1.4)).action


def test_the_start_of_the_workers_counts_against_a_short_epoch(
    facts: Make, trial: MakeTrial
) -> None:
    current = trial(NOW, startup=0.5)
    verdict = decide(facts(epoch=1.0, current=current))
    assert verdict.kind == "start-up"
    assert verdict.gain == pytest.approx(1.5)
    assert decide(facts(epoch=10.0, current=current)).kind == "balanced"
    assert decide(facts(epoch=None, current=current)).kind == "balanced"


def test_the_start_is_not_named_where_something_else_gains_more(
    better: Make, trial: MakeTrial
) -> None:
    short = {"epoch": 1.0, "current": trial(NOW, startup=0.5)}
    assert decide(better(8, 1.6, **short)).kind == "too few workers"
    assert decide(better(8, 1.4, **short)).kind == "start-up"


def test_the_start_is_not_named_where_no_workers_are_best(better: Make, trial: MakeTrial) -> None:
    short = {"epoch": 1.0, "current": trial(NOW, startup=0.5)}
    assert decide(better(0, 1.2, **short)).kind != "start-up"


def test_workers_that_persist_or_do_not_exist_have_no_start(facts: Make, trial: MakeTrial) -> None:
    lasting = trial(replace(NOW, persistent_workers=True), startup=0.5)
    assert decide(facts(epoch=1.0, current=lasting)).kind == "balanced"
    without = trial(NOW.with_workers(0), startup=0.5)
    assert decide(facts(epoch=1.0, current=without)).kind == "balanced"


def test_sending_that_costs_more_than_it_saves_asks_for_no_workers(better: Make) -> None:
    parts = (stage("transfer", run=0.08, gain=4.0), stage("dataset code", run=0.01, gain=1.1))
    verdict = decide(better(0, 5.0, stages=parts))
    assert verdict.kind == "transfer"
    assert "num_workers=0" in verdict.action


def test_without_stages_there_is_still_a_verdict(facts: Make) -> None:
    assert decide(facts(stages=())).kind == "balanced"
