import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from ptools.errors import PtoolsError
from ptools.loader_profile.isolate import RunError, isolated


def start_workers(pids: Any, planted: Callable[..., Any], then: Callable[[], None]) -> None:
    dataset = planted(100, wait=0.01)
    loader = DataLoader(dataset, num_workers=2, worker_init_fn=pids.note)
    pids.note()
    iterator = iter(loader)
    next(iterator)
    pids.wait_for(3)
    then()


def press_ctrl_c(at: float) -> None:
    threading.Timer(at, os.kill, (os.getpid(), signal.SIGINT)).start()


def test_the_value_comes_back() -> None:
    value = isolated(lambda: {"rate": 2.5, "batch": torch.arange(3)}, 10)
    assert value["rate"] == 2.5
    assert value["batch"].tolist() == [0, 1, 2]


def test_a_value_larger_than_a_pipe_comes_back() -> None:
    assert isolated(lambda: bytes(10_000_000), 10) == bytes(10_000_000)


def test_nothing_that_it_does_is_seen_here() -> None:
    seen: list[int] = []
    assert isolated(lambda: (seen.append(os.getpid()), os.getpid())[1], 10) != os.getpid()
    assert seen == []


def test_an_error_comes_with_its_traceback() -> None:
    def fails() -> None:
        raise ValueError("no such image")

    with pytest.raises(RunError, match="no such image") as caught:
        isolated(fails, 10)
    assert "in fails" in caught.value.text
    assert "\n" not in caught.value.message


def test_an_error_of_ours_keeps_its_hint() -> None:
    def fails() -> None:
        raise PtoolsError("it is empty", hint="fill it")

    with pytest.raises(PtoolsError) as caught:
        isolated(fails, 10)
    assert (caught.value.message, caught.value.hint) == ("it is empty", "fill it")
    assert not isinstance(caught.value, RunError)


@pytest.mark.parametrize("last", [lambda: sys.exit(3), lambda: print, lambda: lambda: None])
def test_what_cannot_come_back_is_no_hang(last: Callable[[], Any]) -> None:
    began = time.monotonic()
    try:
        isolated(last, 10)
    except PtoolsError as error:
        assert "\n" not in error.message
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "last", [lambda: os._exit(0), lambda: os.kill(os.getpid(), signal.SIGKILL)]
)
def test_a_process_that_dies_is_an_error(last: Callable[[], Any]) -> None:
    with pytest.raises(PtoolsError, match="died"):
        isolated(last, 10)


def test_a_run_that_takes_too_long_is_ended(pids: Any) -> None:
    began = time.monotonic()
    with pytest.raises(PtoolsError, match="not through"):
        isolated(lambda: (pids.note(), time.sleep(60)), 0.3)
    assert time.monotonic() - began < 2  # not a moment to end in order
    assert len(pids.noted) == 1
    assert not pids.alive


@pytest.mark.parametrize("way", ["returns", "raises", "dies", "hangs"])
def test_workers_are_gone_afterwards(way: str, pids: Any, planted: Any) -> None:
    def end() -> None:
        if way == "raises":
            raise ValueError
        if way == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "hangs":
            time.sleep(60)

    try:
        isolated(lambda: start_workers(pids, planted, end), 1.5)
    except PtoolsError:
        assert way != "returns"
    assert len(pids.noted) == 3
    assert pids.all_end_within(0.5)


def test_ctrl_c_leaves_no_process(pids: Any, planted: Any) -> None:
    press_ctrl_c(at=0.8)
    with pytest.raises(KeyboardInterrupt):
        isolated(lambda: start_workers(pids, planted, lambda: time.sleep(60)), 30)
    assert len(pids.noted) == 3
    assert pids.all_end_within(0.5)


def test_impatient_ctrl_c_leaves_no_process(pids: Any, planted: Any) -> None:
    def run_and_linger() -> None:
        try:
            isolated(lambda: start_workers(pids, planted, lambda: time.sleep(60)), 30)
        finally:
            time.sleep(0.5)  # the second comes now if the first has ended it all already

    press_ctrl_c(at=0.8)
    press_ctrl_c(at=0.802)
    with pytest.raises(KeyboardInterrupt):
        run_and_linger()
    assert pids.all_end_within(3)


SCRIPT = """
import os, pathlib, sys
from torch.utils.data import DataLoader
from ptools.loader_profile.isolate import isolated

def note(*_):
    pathlib.Path(sys.argv[1], str(os.getpid())).touch()

def run():
    note()
    context = sys.argv[2]
    loader = DataLoader(
        range(10**6), num_workers=2, worker_init_fn=note, multiprocessing_context=context
    )
    for _ in loader:
        pass

if __name__ == "__main__":
    isolated(run, 60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
@pytest.mark.parametrize(
    "context",
    [
        "fork",
        pytest.param("spawn", marks=pytest.mark.slow),
        pytest.param("forkserver", marks=pytest.mark.slow),
    ],
)
def test_a_parent_that_is_killed_leaves_no_process(
    context: str, pids: Any, write: Callable[[str, str], Path]
) -> None:
    command = [sys.executable, write("parent.py", SCRIPT), pids.folder, context]
    parent = subprocess.Popen(command, start_new_session=True)
    try:
        pids.wait_for(3)
    finally:
        parent.kill()
        parent.wait()
    assert pids.all_end_within(2)


def test_the_signals_of_the_parent_stay_as_they_were() -> None:
    signals = signal.SIGHUP, signal.SIGINT
    before = [signal.getsignal(number) for number in signals]
    there = isolated(lambda: signal.getsignal(signal.SIGINT), 10)
    assert there == signal.SIG_IGN
    assert [signal.getsignal(number) for number in signals] == before


def test_a_parent_that_has_computed_with_several_threads_is_no_hang() -> None:
    def compute() -> float:
        return float(torch.stack([torch.ones(3, 512, 512)] * 4).sum())

    assert isolated(compute, 10) == compute() == isolated(compute, 10)


def test_a_thread_may_call_it() -> None:
    values: list[int] = []
    thread = threading.Thread(target=lambda: values.append(isolated(lambda: 7, 10)))
    thread.start()
    thread.join()
    assert values == [7]
