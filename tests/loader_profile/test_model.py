import pytest

from ptools.loader_profile.model import limit, predict
from ptools.loader_profile.report import Demand

PHOTOS = Demand(run=0.030, waiting=0.010, helpers=0.0, main=0.002, alone=0.031)


def test_without_workers_everything_takes_its_turn() -> None:
    assert predict(PHOTOS, 0, cores=8, step=0.009) == pytest.approx(1 / (0.031 + 0.010 + 0.009))
    assert limit(PHOTOS, 0, cores=8) == "alone"


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_add_up_while_cores_are_free(workers: int) -> None:
    assert predict(PHOTOS, workers, cores=8) == pytest.approx(workers / 0.040)
    assert limit(PHOTOS, workers, cores=8) == "workers"


def test_the_consumer_needs_a_core_too() -> None:
    assert predict(PHOTOS, 16, cores=2) == pytest.approx(2 / 0.032)
    assert limit(PHOTOS, 16, cores=2) == "cores"


def test_threads_of_a_worker_take_cores_but_not_its_time() -> None:
    threaded = Demand(run=0.010, waiting=0.010, helpers=0.030, main=0.0, alone=0.040)
    assert predict(threaded, 1, cores=4) == pytest.approx(1 / 0.020)
    assert predict(threaded, 8, cores=4) == pytest.approx(4 / 0.040)


def test_one_process_takes_the_batches_one_after_the_other() -> None:
    assert predict(PHOTOS, 16, cores=64) == pytest.approx(16 / 0.040)
    assert predict(PHOTOS, 64, cores=64) == pytest.approx(1 / 0.002)
    assert limit(PHOTOS, 64, cores=64) == "consumer"


def test_a_training_step_keeps_the_consumer_but_no_core() -> None:
    assert predict(PHOTOS, 8, cores=8, step=0.098) == pytest.approx(1 / 0.100)
    assert limit(PHOTOS, 8, cores=8, step=0.098) == "consumer"
    assert limit(PHOTOS, 2, cores=8, step=0.010) == "workers"


def test_as_many_workers_as_cores_are_limited_by_the_cores() -> None:
    busy = Demand(run=0.010, waiting=0.0, helpers=0.0, main=0.0, alone=0.010)
    assert limit(busy, 4, cores=4) == "cores"


def test_waiting_scales_far_beyond_the_cores() -> None:
    remote = Demand(run=0.001, waiting=0.100, helpers=0.0, main=0.0, alone=0.001)
    assert predict(remote, 32, cores=1) == pytest.approx(32 / 0.101)


def test_what_costs_nothing_still_has_a_rate() -> None:
    free = Demand(run=0.0, waiting=0.0, helpers=0.0, main=0.0, alone=0.0)
    assert all(0 < predict(free, workers, cores=1) < float("inf") for workers in range(3))


# Batches a second of real loaders whose samples slept, holding one of so many tokens as if it were
# a core: milliseconds of a batch on a core and waiting, cores, workers, measured.
MEASURED = [
    (17.2, 0.0, 4, 2, 119.7),
    (17.2, 0.0, 4, 4, 232.1),
    (17.2, 0.0, 4, 8, 243.9),
    (13.8, 4.6, 4, 6, 287.8),
    (8.7, 17.4, 4, 8, 308.8),
    (8.7, 17.4, 4, 12, 431.8),
    (17.2, 0.0, 8, 12, 469.8),
    (13.0, 4.3, 8, 8, 455.0),
    (8.8, 17.6, 8, 16, 597.8),
    (4.3, 25.9, 8, 12, 379.1),
]


@pytest.mark.parametrize(("run", "waiting", "cores", "workers", "measured"), MEASURED)
def test_predicts_measured_loaders(
    run: float, waiting: float, cores: int, workers: int, measured: float
) -> None:
    demand = Demand(run / 1e3, waiting / 1e3, helpers=0.0, main=0.0, alone=run / 1e3)
    assert predict(demand, workers, cores) == pytest.approx(measured, rel=0.1)
