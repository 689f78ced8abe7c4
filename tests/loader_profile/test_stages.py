import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ptools.loader_profile import stages
from ptools.loader_profile.model import predict
from ptools.loader_profile.observe import Observation
from ptools.loader_profile.probe import COLLATE, DATASET, Key, Record
from ptools.loader_profile.report import Demand, Settings, Stage, Trial

Trials = Callable[..., Trial]

BLUR = "Blur", "transform"
IMREAD = "cv2.imread", "decode"
SAMPLES = 10
ASKED = Demand(run=0.050, waiting=0.020, helpers=0.008, main=0.004, alone=0.040)


def record(parts: dict[Key, list[float]] | None = None, **changes: Any) -> Record:
    """A batch of which each part has its calls, run, ready and waiting."""
    parts = parts or {COLLATE: [1, 0.0, 0.0, 0.0]}
    made = Record(0, False, 0.0, 0.0, 0.0, parts, [], 0.0, 0.0, 0.0, 0.0, {})
    return replace(made, **changes)


def observed(*records: Record, workers: int = 1) -> Observation:
    return Observation(Settings(workers, SAMPLES, 2), list(records), [], SAMPLES)


def waiting(*seconds: float, workers: int = 1) -> Observation:
    """Batches of which the reading waits for so long."""
    return observed(*(record({IMREAD: [1, 0.001, 0.0, one]}) for one in seconds), workers=workers)


def found(*records: Record, **changes: Any) -> dict[Key, Stage]:
    asked = {"alone": None, "asked": replace(ASKED, main=0.0), "with_workers": True} | changes
    return {(one.name, one.kind): one for one in stages.stages(observed(*records), **asked)}


def in_a_worker() -> Observation:
    parts = {DATASET: [10, 0.03, 0.0, 0.02], COLLATE: [1, 0.01, 0.0, 0.004]}
    return observed(
        record(parts, run=0.040, process=0.070), record(parts, run=0.060, process=0.050)
    )


def test_the_demand_is_the_mean_of_the_batches(trial: Trials) -> None:
    plain = trial(Settings(1, SAMPLES, 2), worker_run=0.060, main_run=0.005)
    asked = stages.demand(observed(record(run=0.045)), in_a_worker(), plain)
    assert asked.run == pytest.approx(0.050)
    assert asked.waiting == pytest.approx(0.024)
    assert asked.helpers == pytest.approx(0.010)
    assert asked.main == pytest.approx(0.005)
    assert asked.alone == pytest.approx(0.045)


def test_a_loader_that_needs_workers_would_take_a_workers_time_alone(trial: Trials) -> None:
    plain = trial(Settings(1, SAMPLES, 2), worker_run=0.060)
    asked = stages.demand(None, in_a_worker(), plain)
    assert asked.alone == pytest.approx(asked.run) == pytest.approx(0.050)


def test_what_measuring_took_is_no_demand(trial: Trials) -> None:
    plain = trial(Settings(1, SAMPLES, 2), worker_run=0.030, main_run=0.005)
    asked = stages.demand(observed(record(run=0.040)), in_a_worker(), plain)
    assert asked.run == pytest.approx(0.025)
    assert asked.helpers == pytest.approx(0.005)
    assert asked.alone == pytest.approx(0.020)
    assert asked.waiting == pytest.approx(0.024)  # takes no core to measure
    assert asked.main == pytest.approx(0.005)  # was never instrumented


def test_a_plain_run_that_took_more_does_not_raise_the_demand(trial: Trials) -> None:
    plain = trial(Settings(1, SAMPLES, 2), worker_run=0.600)
    assert stages.demand(None, in_a_worker(), plain).run == pytest.approx(0.050)


def test_stages_are_means_of_a_sample() -> None:
    parts = found(record({BLUR: [10, 0.02, 0.004, 0.01]}), record({BLUR: [20, 0.04, 0.0, 0.03]}))
    blur = parts[BLUR]
    assert blur.calls == pytest.approx(1.5)
    assert blur.run == pytest.approx(0.003)
    assert blur.ready == pytest.approx(0.0002)
    assert blur.waiting == pytest.approx(0.002)
    assert blur.without is None


def test_a_stage_that_few_batches_have_is_a_mean_over_all() -> None:
    plain = {DATASET: [10, 0.02, 0.0, 0.0]}
    parts = found(record(plain), record(plain | {BLUR: [1, 0.04, 0.0, 0.0]}))
    assert parts[BLUR].run == pytest.approx(0.002)
    assert parts[BLUR].calls == pytest.approx(0.05)


def test_what_readers_wait_for_is_the_storage() -> None:
    loads = "numpy.load", "storage"
    reads = {IMREAD: [20, 0.05, 0.001, 0.03], loads: [5, 0.02, 0.0, 0.02]}
    rest = {DATASET: [10, 0.01, 0.0, 0.01], BLUR: [10, 0.03, 0.0, 0.04]}
    parts = found(record(rest | reads))
    storage = parts[stages.STORAGE]
    assert storage.waiting == pytest.approx(0.006)
    assert storage.run == 0.0
    assert storage.calls == pytest.approx(2.0)
    assert [parts[key].waiting for key in (DATASET, IMREAD, loads)] == [0.0, 0.0, 0.0]
    assert [parts[key].run for key in (DATASET, IMREAD, loads)] == pytest.approx(
        [0.001, 0.005, 0.002]
    )
    assert parts[BLUR].waiting == pytest.approx(0.004)  # a lock or a sleep of the transform's own


def test_memory_that_is_shared_moves_from_collate_to_transfer() -> None:
    worker = record({DATASET: [10, 0.05, 0.0, 0.0], COLLATE: [1, 0.030, 0.0, 0.0]}, feeder=0.003)
    alone = observed(record({COLLATE: [1, 0.010, 0.0, 0.0]}), workers=0)
    parts = found(worker, alone=alone, asked=ASKED)
    assert parts[COLLATE].run == pytest.approx(0.001)
    assert parts[stages.TRANSFER].run == pytest.approx((0.020 + 0.003 + 0.004) / SAMPLES)
    assert parts[stages.TRANSFER].calls == pytest.approx(1 / SAMPLES)


def test_without_a_run_alone_collating_keeps_what_it_took() -> None:
    worker = record({COLLATE: [1, 0.030, 0.0, 0.0]}, feeder=0.003)
    parts = found(worker, asked=ASKED)
    assert parts[COLLATE].run == pytest.approx(0.003)
    assert parts[stages.TRANSFER].run == pytest.approx((0.003 + 0.004) / SAMPLES)


def test_collating_that_is_cheaper_in_a_worker_shares_nothing() -> None:
    worker = observed(record({COLLATE: [1, 0.010, 0.0, 0.0]}))
    alone = observed(record({COLLATE: [1, 0.012, 0.0, 0.0]}), workers=0)
    assert stages.sharing(worker, alone) == 0.0
    assert stages.sharing(alone, worker) == pytest.approx(0.002)
    assert stages.sharing(worker, None) == 0.0


def test_without_workers_nothing_is_transferred() -> None:
    parts = found(record({COLLATE: [1, 0.030, 0.0, 0.0]}), asked=ASKED, with_workers=False)
    assert set(parts) == {COLLATE}
    assert parts[COLLATE].run == pytest.approx(0.003)


def test_the_longest_stage_is_first_and_readiness_does_not_count() -> None:
    two = {DATASET: [10, 0.01, 9.0, 0.0], BLUR: [10, 0.02, 0.0, 0.0]}
    parts = found(record(two | {COLLATE: [1, 0.01, 0.0, 0.02]}))
    assert list(parts) == [COLLATE, BLUR, DATASET]


def test_stages_that_do_not_matter_are_not_shown() -> None:
    flip = "Flip", "transform"
    two = {BLUR: [10, 1.0, 0.0, 0.0], flip: [10, 0.0021, 0.0, 0.0]}
    parts = found(record(two | {COLLATE: [1, 0.0019, 0.0, 0.0]}))
    assert list(parts) == [BLUR, flip]


@pytest.mark.parametrize("kind", ["storage", "decode", "transform", "dataset code", "collate"])
def test_without_a_stage_its_time_goes_from_run_and_waiting(kind: str) -> None:
    part = Stage("part", kind, 1.0, 0.003, 9.0, 0.001)
    less = stages.without(ASKED, part, SAMPLES, 0.002, 1.0)
    expected = replace(ASKED, run=ASKED.run - 0.030, waiting=0.010, alone=ASKED.alone - 0.030)
    assert vars(less) == pytest.approx(vars(expected))


def test_a_stage_cannot_take_more_than_there_is() -> None:
    less = stages.without(ASKED, Stage("part", "decode", 1.0, 1.0, 0.0, 1.0), SAMPLES, 0.0, 1.0)
    assert less == replace(ASKED, run=0.0, waiting=0.0, alone=0.0)


def test_without_transfer_nobody_shares_sends_or_receives() -> None:
    sharing, feeder = 0.020, 0.003
    part = Stage(*stages.TRANSFER, 0.1, (sharing + feeder + ASKED.main) / SAMPLES, 0.0, 0.0)
    less = stages.without(ASKED, part, SAMPLES, sharing, 1.0)
    expected = replace(ASKED, run=0.030, helpers=0.005, main=0.0)
    assert vars(less) == pytest.approx(vars(expected))


def test_the_rate_without_a_stage_is_bound_by_what_remains() -> None:
    asked = Demand(run=0.050, waiting=0.050, helpers=0.0, main=0.0, alone=0.040)
    storage = Stage(*stages.STORAGE, 1.0, 0.0, 0.0, 0.005)
    blur = Stage(*BLUR, 1.0, 0.003, 0.0, 0.0)

    def rate(part: Stage, workers: int, cores: int) -> float:
        return predict(stages.without(asked, part, SAMPLES, 0.0, 1.0), workers, cores)

    assert predict(asked, 4, 4) == pytest.approx(4 / 0.100)
    assert rate(storage, 4, 4) == pytest.approx(4 / 0.050)
    assert rate(blur, 4, 4) == pytest.approx(4 / 0.070)
    assert predict(asked, 4, 1) == rate(storage, 4, 1) == pytest.approx(1 / 0.050)
    assert rate(blur, 4, 1) == pytest.approx(1 / 0.020)
    assert rate(blur, 0, 1) == pytest.approx(1 / (0.010 + 0.050))


def test_without_transfer_the_consumer_binds_no_more() -> None:
    asked = Demand(run=0.010, waiting=0.0, helpers=0.002, main=0.020, alone=0.010)
    part = Stage(*stages.TRANSFER, 0.1, 0.0022, 0.0, 0.0)
    assert predict(asked, 4, 16) == pytest.approx(1 / 0.020)
    assert predict(stages.without(asked, part, SAMPLES, 0.0, 1.0), 4, 16) == pytest.approx(
        4 / 0.010
    )


def test_threads_that_neither_loop_nor_send_are_hidden() -> None:
    busy = record(run=0.010, feeder=0.002, process=0.030)
    quiet = record(run=0.010, feeder=0.002, process=0.012)
    assert stages.hidden_run(observed(busy, quiet)) == pytest.approx(0.009)
    assert stages.hidden_run(observed(quiet)) == pytest.approx(0.0)
    assert stages.hidden_run(observed(record(run=0.010, process=0.009))) == 0.0


def test_workers_that_wait_for_each_other_are_found() -> None:
    draw = random.Random(1)
    single = waiting(*(draw.gauss(0.020, 0.002) for _ in range(50)))
    several = waiting(*(draw.gauss(0.050, 0.002) for _ in range(200)), workers=4)
    assert stages.contention(several, single) == pytest.approx(0.003, rel=0.1)
    assert stages.contention(several, single) < 0.003  # the least that it can be
    assert stages.contention(single, several) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_contention(seed: int) -> None:
    draw = random.Random(seed)
    single, several = (
        waiting(*(draw.gauss(0.020, 0.010) for _ in range(count))) for count in (50, 200)
    )
    assert stages.contention(several, single) < 0.0002  # a hundredth of what a sample waits


@pytest.mark.parametrize("slow", [1, 2, 3])
def test_rare_slow_samples_are_no_contention(slow: int) -> None:
    single = waiting(*[0.010] * 50)
    several = waiting(*[0.010] * (200 - slow), *[1.0] * slow, workers=4)
    assert stages.contention(several, single) == 0.0


def test_the_share_of_the_time_without_a_core() -> None:
    crowd = observed(
        record({BLUR: [10, 0.02, 0.04, 0.01], COLLATE: [1, 0.01, 0.01, 0.0]}),
        record({BLUR: [10, 0.02, 0.01, 0.0], COLLATE: [1, 0.03, 0.03, 0.02]}),
    )
    assert stages.ready_share(crowd) == pytest.approx(0.09 / 0.20)


def test_bytes_from_the_disk_are_those_of_a_sample() -> None:
    assert stages.disk_bytes(observed(record(disk_bytes=4096), record())) == pytest.approx(204.8)


def test_all_cores_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "usable_cores", lambda: 4)
    assert stages.cores_period(ASKED) == pytest.approx((0.050 + 0.008 + 0.004) / 4)
