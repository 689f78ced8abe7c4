import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ptools.loader_profile import clocks
from ptools.loader_profile.clocks import Clock
from ptools.loader_profile.isolate import isolated

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are two clocks")
Spin = Callable[[float], None]


def total(function: Callable[[], object], calls: int) -> Clock:
    """What the clocks say of these calls, each taken by itself."""
    sums = [0.0, 0.0, 0.0]
    for _ in range(calls):
        start = clocks.now()
        function()
        for number, value in enumerate(clocks.now().since(start)):
            sums[number] += value
    return Clock(*sums)


@pytest.fixture
def one_shared_core() -> Iterator[None]:
    """This thread has one core, and two busy processes have the same."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    time.sleep(0.1)
    yield
    for process in busy:
        process.kill()
        process.wait()
    os.sched_setaffinity(0, allowed)


def test_what_computes_runs(spin: Spin) -> None:
    spent = total(lambda: spin(0.5e-3), calls=500)
    assert spent.run == pytest.approx(0.25, rel=0.1)
    assert spent.wall == pytest.approx(spent.run + spent.ready + spent.waiting, rel=0.02)


@linux
def test_what_computes_does_not_wait(spin: Spin) -> None:
    assert total(lambda: spin(0.5e-3), calls=500).waiting < 0.02


def test_what_sleeps_waits() -> None:
    spent = total(lambda: time.sleep(5e-3), calls=50)
    assert spent.run < 0.02
    assert spent.waiting + spent.ready > 0.25
    if clocks.CLOCKS == 3:
        assert spent.waiting == pytest.approx(0.25, rel=0.1)


def test_what_waits_for_a_lock_waits() -> None:
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(0.2, lock.release).start()
    spent = total(lock.acquire, calls=1)
    assert spent.run < 0.02
    assert spent.waiting == pytest.approx(0.2, rel=0.15)


@linux
def test_a_shared_core_makes_ready_and_leaves_run_as_it_is(
    one_shared_core: None, spin: Spin
) -> None:
    spent = total(lambda: spin(0.5e-3), calls=500)
    assert spent.run == pytest.approx(0.25, rel=0.1)
    assert spent.ready > 0.25  # two others have two thirds of the core
    assert spent.waiting < 0.1 * spent.wall


@linux
def test_a_shared_core_leaves_what_waits_as_it_is(one_shared_core: None) -> None:
    spent = total(lambda: time.sleep(5e-3), calls=50)
    assert spent.waiting == pytest.approx(0.25, rel=0.1)


def test_a_forked_process_has_clocks_of_its_own(spin: Spin) -> None:
    clocks.now()

    def child() -> Clock:
        return total(lambda: spin(0.05), calls=1)

    spent = isolated(child, 10)
    assert spent.run == pytest.approx(0.05, rel=0.1)
    assert spent.waiting < 0.02 or clocks.CLOCKS == 2


def test_each_thread_has_clocks_of_its_own(spin: Spin) -> None:
    found: list[Clock] = []
    thread = threading.Thread(target=lambda: found.append(total(lambda: spin(0.05), 1)))
    mine = total(lambda: (thread.start(), thread.join()), calls=1)
    assert found[0].run == pytest.approx(0.05, rel=0.1)
    assert mine.run < 0.03


@linux
def test_another_thread_can_be_asked_for(spin: Spin) -> None:
    done = threading.Event()

    def work() -> None:
        spin(0.1)
        time.sleep(1e-3)  # the kernel counts when it gives the core away
        done.wait()

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.5)
    assert thread.native_id is not None
    assert clocks.thread_run(thread.native_id) == pytest.approx(0.1, rel=0.1)
    done.set()
    thread.join()
    assert clocks.thread_run(2**22 + 1) == 0.0


@linux
def test_other_processes_can_be_asked_for() -> None:
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ntime.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    before = clocks.machine_run()
    child.stdout.readline()
    spent, machine = clocks.process_run([child.pid]), clocks.machine_run() - before
    child.kill()
    child.communicate()
    assert spent == pytest.approx(0.5, abs=0.05)
    assert machine > 0.4
    assert clocks.process_run([child.pid]) == 0.0  # it has gone


def test_without_the_kernels_third_clock_there_are_two(
    monkeypatch: pytest.MonkeyPatch, spin: Spin
) -> None:
    monkeypatch.setattr(clocks, "CLOCKS", 2)
    monkeypatch.setattr(clocks, "_SCHEDSTAT", Path("/nowhere"))
    spent = total(lambda: (spin(0.02), time.sleep(0.02)), calls=5)
    assert spent.run == pytest.approx(0.1, rel=0.1)
    assert spent.ready == 0.0
    assert spent.waiting == pytest.approx(spent.wall - spent.run)
