"""Timers: right times, kept by name, and no device touched that is not in use."""

import statistics
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Iterator

import pytest
import torch

from ptools.errors import UsageError
from ptools.train.timing import Times, shown_seconds, timed, timer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    timed.reset()
    yield
    timed.reset()


def counts(times: Times) -> dict[str, int]:
    return {one.name: one.count for one in times.timers}


def test_the_time_is_that_of_the_block() -> None:
    before = time.perf_counter()
    with timer() as t:
        time.sleep(0.02)
    assert 0.02 <= t.seconds <= time.perf_counter() - before
    assert str(t) == shown_seconds(t.seconds)
    assert not timed.report().timers


def test_statistics_are_those_of_the_single_times() -> None:
    single = []
    for _ in range(6):
        with timer("load") as t:
            time.sleep(0.001)
        single.append(t.seconds)
    (one,) = timed.report().timers
    assert (one.name, one.count, one.min, one.max) == ("load", 6, min(single), max(single))
    assert one.median == statistics.median(single)
    assert one.mean == pytest.approx(statistics.fmean(single))
    assert one.total == pytest.approx(sum(single))


def test_a_timer_within_another_is_named_after_both() -> None:
    for _ in range(2):
        with timer("epoch"), timer(), timer("load"):
            pass
    with timer("load"):
        pass
    assert counts(timed.report()) == {"epoch / load": 2, "epoch": 2, "load": 1}


def test_one_timer_can_run_within_itself() -> None:
    t = timer("again")
    with t:
        with t:
            pass
        inner = t.seconds
        time.sleep(0.01)
    assert inner < 0.01 <= t.seconds
    assert counts(timed.report()) == {"again / again": 1, "again": 1}


def test_an_exception_passes_and_is_not_counted() -> None:
    with pytest.raises(KeyError), timer("outer"), timer("inner") as t:
        raise KeyError
    assert t.seconds > 0
    with timer("next"):
        pass
    assert counts(timed.report()) == {"next": 1}


def test_a_function_is_timed_under_its_name() -> None:
    @timed
    def double(x: int) -> int:
        """Twice."""
        return 2 * x

    assert [double(1), double(2)] == [2, 4]
    assert double.__doc__ == "Twice."
    ((name, count),) = counts(timed.report()).items()
    assert name.endswith("double") and count == 2


def test_a_recursive_function_has_a_row_for_each_depth() -> None:
    @timed
    def down(n: int) -> int:
        return down(n - 1) if n else 0

    down(2)
    assert list(counts(timed.report()).values()) == [1, 1, 1]


def test_a_generator_is_refused() -> None:
    with pytest.raises(UsageError, match="does not run it yet"):

        @timed
        def numbers() -> Iterator[int]:
            yield 1


def test_threads_do_not_nest_in_one_another() -> None:
    def work() -> None:
        with timer("work"):
            pass

    with timer("main"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert counts(timed.report()) == {"work": 1, "main": 1}


def test_the_report_is_a_table_and_plain_data() -> None:
    with timer("load"):
        pass
    lines = str(timed.report()).splitlines()
    assert lines[0].split() == "timer count total mean median min max".split()
    assert lines[1].startswith("load") and len({len(line) for line in lines}) == 1
    (one,) = timed.report().to_dict()["timers"]
    assert one["name"] == "load" and one["min"] == one["max"] > 0


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 us"),
        (8.31e-5, "83.1 us"),
        (0.0123, "12.3 ms"),
        (0.99999, "1 s"),
        (4.56, "4.56 s"),
        (5000, "5,000 s"),
    ],
)
def test_times_are_shown_in_their_unit(seconds: float, text: str) -> None:
    assert shown_seconds(seconds) == text


def test_an_empty_timer_costs_microseconds_at_most() -> None:
    def empty() -> None:
        with timer("empty"):
            pass

    rounds = timeit.repeat(empty, number=2000, repeat=10, timer=time.thread_time)
    assert min(rounds) / 2000 < 5e-6  # about 1 microsecond on an idle core


def test_a_device_in_use_is_waited_for_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with timer():
        assert not waits
    assert not waits
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with timer():
        assert len(waits) == 1
    assert len(waits) == 2
    with pytest.raises(KeyError), timer():  # the device may be what failed
        raise KeyError
    assert len(waits) == 3


@pytest.mark.gpu
@needs_gpu
def test_no_timer_initialises_a_gpu() -> None:
    program = (
        "import torch; from ptools.train.timing import timer\n"
        "with timer(): pass\n"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.gpu
@needs_gpu
def test_queued_work_counts_where_it_was_queued() -> None:
    x = torch.randn(4096, 4096, device="cuda")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with timer() as t:
        begin.record()
        for _ in range(20):
            x.mm(x)
        end.record()
    assert t.seconds >= begin.elapsed_time(end) / 1000
