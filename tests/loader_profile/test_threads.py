import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from ptools.cores import usable_cores
from ptools.loader_profile.threads import advice, limit_threads

FORK = get_context("fork")
several_cores = pytest.mark.skipif(usable_cores() < 2, reason="one core has no second thread")


def in_a_fork(function: Callable[[], Any]) -> Any:
    """What the function returns in a forked process, which must come within 30 s."""
    theirs, ours = FORK.Pipe()
    child = FORK.Process(target=lambda: theirs.send(function()))
    child.start()
    try:
        assert ours.poll(30), "the forked process hangs"
        return ours.recv()
    finally:
        child.kill()
        child.join()


def threads_at_work(function: Callable[[], object]) -> float:
    """CPU time of the process for each second of CPU time of the thread that calls."""
    function()  # OpenBLAS's threads spin for some 60 ms once they start, also without work
    process, thread = time.process_time(), time.thread_time()
    function()
    return (time.process_time() - process) / (time.thread_time() - thread)


def multiply() -> None:
    matrix = np.ones((700, 700))
    for _ in range(10):
        matrix @ matrix


def blur() -> None:
    image = np.zeros((1500, 1500, 3), np.uint8)
    for _ in range(5):
        cv2.GaussianBlur(image, (31, 31), 5)


@several_cores
@pytest.mark.parametrize("work", [multiply, blur])
def test_a_limited_process_works_on_one_core(work: Callable[[], None]) -> None:
    def limited() -> float:
        limit_threads()
        return threads_at_work(work)

    assert in_a_fork(lambda: threads_at_work(work)) > 1.5
    assert in_a_fork(limited) < 1.1


def test_limiting_after_the_parent_has_used_its_threads_does_not_hang() -> None:
    multiply()
    blur()
    torch.ones(500, 500) @ torch.ones(500, 500)

    def limited() -> tuple[int, int]:
        limit_threads()
        multiply()
        blur()
        return torch.get_num_threads(), cv2.getNumThreads()

    assert in_a_fork(limited) == (1, 1)


def test_the_parent_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    in_a_fork(limit_threads)
    assert torch.get_num_threads() == before


def test_advice_names_the_libraries_that_are_loaded() -> None:
    assert "OPENBLAS_NUM_THREADS=1" in advice()
    assert advice().endswith(" and cv2.setNumThreads(0) in worker_init_fn")
    assert "MKL" not in advice()


def test_advice_is_silent_about_libraries_that_are_not() -> None:
    script = """
import sys
sys.modules["numpy"] = None  # torch does without
import torch
from ptools.loader_profile.threads import advice
print(repr(advice()))
"""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "''\n"


@several_cores
def test_the_advised_variables_have_the_same_effect() -> None:
    variables = dict(word.split("=") for word in advice().split() if "_NUM_THREADS=" in word)
    assert variables
    script = """
import time
import numpy as np
matrix = np.ones((700, 700))
process, thread = time.process_time(), time.thread_time()
for _ in range(10): matrix @ matrix
print((time.process_time() - process) / (time.thread_time() - thread))
"""
    plain = {name: text for name, text in os.environ.items() if "_NUM_THREADS" not in name}
    ratios = [
        float(subprocess.check_output([sys.executable, "-c", script], env=environment, text=True))
        for environment in (plain, {**plain, **variables})
    ]
    assert ratios[0] > 1.5
    assert ratios[1] < 1.1
