import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch.utils.data import DataLoader

from ptools.loader_profile.lines import LineSampler, top
from ptools.usercode import load_file

PLANTED = """\
import time


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end: pass


def pause(seconds):
    time.sleep(seconds)


def order(count):
    return sorted(range(count), key=str)


class Dataset:
    def __init__(self, sampler):
        self.sampler = sampler
        self.samples = False

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.samples = self.samples or self.sampler.start()
        pause(0.1)
        return self.sampler.take()
"""
SPIN, PAUSE, ORDER = 6, 10, 14


@pytest.fixture
def planted(write: Callable[[str, str], Path]) -> ModuleType:
    return load_file(write("slow_lines.py", PLANTED))


@pytest.fixture
def sampler() -> Iterator[LineSampler]:
    sampler = LineSampler()
    yield sampler
    sampler.stop()


def elapsed(function: Callable[[Any], object], argument: float) -> float:
    start = time.perf_counter()
    function(argument)
    return time.perf_counter() - start


def test_lines_get_the_seconds_that_they_took(planted: ModuleType, sampler: LineSampler) -> None:
    assert sampler.start()
    spinning = pausing = 0.0
    for _ in range(20):
        spinning += elapsed(planted.spin, 0.012)
        pausing += elapsed(planted.pause, 0.024)
    seconds = sampler.take()
    assert seconds[planted.__file__, SPIN] == pytest.approx(spinning, rel=0.15)
    assert seconds[planted.__file__, PAUSE] == pytest.approx(pausing, rel=0.15)
    shares = {line.line: line.share for line in top(seconds)}
    assert shares[PAUSE] == pytest.approx(pausing / (spinning + pausing), abs=0.07)


def test_one_long_call_counts_in_full(planted: ModuleType, sampler: LineSampler) -> None:
    assert sampler.start()
    running = time.thread_time()
    took = elapsed(planted.order, 300_000)
    running = time.thread_time() - running
    assert 0.9 * running < sampler.take()[planted.__file__, ORDER] < took + 0.006


def test_time_outside_the_users_code_counts_for_nobody(
    planted: ModuleType, sampler: LineSampler
) -> None:
    assert sampler.start()
    time.sleep(0.05)
    assert sampler.take() == {}


def test_the_callers_own_lines_are_not_the_workers(
    planted: ModuleType, sampler: LineSampler
) -> None:
    assert sampler.start()
    planted.pause(0.03)
    end = time.perf_counter() + 0.03
    while time.perf_counter() < end:
        pass
    assert {file for file, _ in sampler.take()} == {planted.__file__}


def test_taking_clears(planted: ModuleType, sampler: LineSampler) -> None:
    assert sampler.start()
    planted.pause(0.03)
    assert sampler.take()
    assert sampler.take() == {}


def test_stop_gives_the_alarm_back(planted: ModuleType, sampler: LineSampler) -> None:
    assert sampler.start()
    assert signal.getitimer(signal.ITIMER_REAL)[1] > 0
    sampler.stop()
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    planted.pause(0.02)
    assert sampler.take() == {}


def test_a_users_handler_is_left_alone(sampler: LineSampler) -> None:
    rung: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        assert not sampler.start()
        sampler.stop()
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.03)
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_users_timer_is_left_alone(sampler: LineSampler) -> None:
    signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        assert not sampler.start()
        sampler.stop()
        assert 50 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_an_alarm_that_the_user_sets_afterwards_stays(sampler: LineSampler) -> None:
    def handler(number: int, frame: object) -> None: ...

    assert sampler.start()
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        sampler.stop()
        assert signal.getsignal(signal.SIGALRM) is handler
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 50
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_calls_that_wait_are_not_cut_short(sampler: LineSampler) -> None:
    assert sampler.start()
    script = "import time; time.sleep(0.1); print('whole')"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert output.stdout == "whole\n"
    assert elapsed(time.sleep, 0.05) >= 0.05


def test_a_forked_worker_counts_its_own_work_alone(
    planted: ModuleType, sampler: LineSampler
) -> None:
    dataset = planted.Dataset(sampler)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork")
    for seconds in loader:  # a line of this file that is on the worker's stack, too
        time.sleep(0.05)
        assert {file for file, _ in seconds} == {planted.__file__}
        assert 0.08 < seconds[planted.__file__, PAUSE] < 0.3


def test_top_orders_by_time_and_shows_the_source(planted: ModuleType) -> None:
    file = str(planted.__file__)
    first, second = top({(file, SPIN): 1.0, (file, PAUSE): 6.0, (file, ORDER): 3.0}, count=2)
    assert (first.line, first.share, first.source) == (PAUSE, 0.6, "time.sleep(seconds)")
    assert (second.line, second.share) == (ORDER, 0.3)


def test_nothing_sampled_gives_no_lines() -> None:
    assert top({}) == ()
