"""Whole runs that fail: the report names the right process, error and line; the code is its own."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest


class Case(NamedTuple):
    """What rank 1 does, and what is to be said of it. `#` ends the line that is to be named."""

    script: str
    says: str
    code: int


ALONE = """
import os, sys, time
def step():
{}
there = os.path.join(os.path.dirname(__file__), "there")
if os.environ["RANK"] == "1":
    while not os.path.exists(there):
        time.sleep(0.01)
    time.sleep(0.1)
    step()
else:
    open(there, "w").close()
    time.sleep(60)
"""
GROUP = """
import atexit, os, time
import torch, torch.distributed as dist
def step():
    if dist.get_rank() == 1:
        time.sleep(0.2)
        raise ValueError("bad label 7")  #
    dist.all_reduce(torch.ones(1))
dist.init_process_group("gloo")
{}
"""


def alone(*lines: str) -> str:
    return ALONE.format("\n".join(f"    {line}" for line in lines))


CASES = {
    "raises": Case(alone("raise ValueError('bad label 7')  #"), "ValueError: bad label 7", 1),
    "is killed": Case(alone("os.kill(os.getpid(), 9)"), "killed by SIGKILL", 137),
    "steps on null": Case(
        alone("import ctypes", "ctypes.string_at(0)  #"), "killed by SIGSEGV", 139
    ),
    "leaves by os._exit": Case(alone("os._exit(5)"), "exit code 5", 5),
    "leaves by sys.exit": Case(alone("sys.exit(3)  #"), "sys.exit(3)", 3),
    "leaves with a message": Case(alone("sys.exit('no data')  #"), "no data", 1),
    "has no memory": Case(
        alone(
            "import resource",
            "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))",
            "bytearray(1 << 31)  #",
        ),
        "MemoryError",
        1,
    ),
    "interrupts itself": Case(alone("raise KeyboardInterrupt  #"), "KeyboardInterrupt", 130),
    "an error without words": Case(
        alone(
            "class Mute(Exception):",
            "    def __str__(self):",
            "        raise RuntimeError",
            "raise Mute  #",
        ),
        "Mute",
        1,
    ),
    "exits slowly": Case(
        alone("import atexit", "atexit.register(time.sleep, 1.5)", "raise ValueError('late')  #"),
        "ValueError: late",
        1,
    ),
}
WITH_TORCH = {
    "raises in a group": Case(GROUP.format("step()"), "ValueError: bad label 7", 1),
    "closes its group first": Case(
        GROUP.format(
            "if dist.get_rank() == 1:\n    atexit.register(time.sleep, 1.5)\n"
            "try:\n    step()\nfinally:\n    dist.destroy_process_group()"
        ),
        "ValueError: bad label 7",
        1,
    ),
    "a loader's worker raises": Case(
        """
import os, time
from torch.utils.data import DataLoader, Dataset
class Bad(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        if index == 5 and os.environ["RANK"] == "1":
            raise KeyError("no such image")  #
        return index
for batch in DataLoader(Bad(), num_workers=2):
    time.sleep(0.01)
time.sleep(60)
""",
        "KeyError: 'no such image'",
        1,
    ),
}


def launched(script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ptools", "launch", "--gpus", "cpu", "-n", "2", *options]
    return subprocess.run(
        [*command, str(script)], capture_output=True, text=True, timeout=60, env=os.environ
    )


def check(case: Case, script: Path) -> None:
    done = launched(script, "--grace", "5")
    lines = case.script.splitlines()
    marked = [number for number, line in enumerate(lines, start=1) if line.endswith("#")]
    first = re.search(r"^first failure: rank (\d+): (.*)$", done.stderr, re.MULTILINE)
    assert first is not None, done.stderr
    assert first[1] == "1", done.stderr
    assert case.says in first[2], done.stderr
    for number in marked:
        assert f"{script.name}:{number} in " in done.stderr, done.stderr
    assert done.returncode == case.code, done.stderr


@pytest.mark.parametrize("name", CASES)
def test_the_first_failure_is_named(name: str, write: Callable[[str, str], Path]) -> None:
    check(CASES[name], write("train.py", CASES[name].script))


@pytest.mark.parametrize("name", WITH_TORCH)
def test_the_first_failure_is_named_with_torch(
    name: str, write: Callable[[str, str], Path]
) -> None:
    pytest.importorskip("torch")
    check(WITH_TORCH[name], write("train.py", WITH_TORCH[name].script))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, *WITH_TORCH])
def test_the_first_failure_is_named_every_time(
    name: str, write: Callable[[str, str], Path]
) -> None:
    case = (CASES | WITH_TORCH)[name]
    script = write("train.py", case.script)
    for _ in range(2):
        check(case, script)


def test_where_the_other_process_was_is_said(write: Callable[[str, str], Path]) -> None:
    case = CASES["raises"]
    done = launched(write("train.py", case.script))
    line = case.script.splitlines().index("    time.sleep(60)") + 1
    assert f"rank 0 was at train.py:{line} in <module>" in done.stderr


def test_a_program_that_leaves_work_to_gloo_ends_well(write: Callable[[str, str], Path]) -> None:
    pytest.importorskip("torch")
    script = write(
        "train.py",
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "def step(): dist.all_reduce(torch.ones(1000), async_op=True)\n"
        "step()\n",
    )
    done = launched(script)
    assert done.returncode == 0, done.stderr


def test_a_failure_is_told_beside_files_named_as_modules_of_python(
    write: Callable[[str, str], Path],
) -> None:
    # Not in the current folder, where `python -m ptools` itself would find them.
    for name in ("token.py", "dataclasses.py", "textwrap.py"):
        write(f"own/{name}", "raise ImportError('not the one')")
    case = CASES["raises"]
    check(case, write("own/train.py", case.script))


def test_an_error_in_a_thread_ends_nothing(write: Callable[[str, str], Path]) -> None:
    script = """
        import threading
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        print("went on")
    """
    done = launched(write("train.py", script.replace("\n        ", "\n")))
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert "ZeroDivisionError" in done.stderr


def test_an_error_that_was_only_shown_ends_nothing(write: Callable[[str, str], Path]) -> None:
    script = write(
        "train.py",
        "import sys, time\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    sys.excepthook(*sys.exc_info())\n"
        "time.sleep(0.5)\nprint('went on')\n",
    )
    done = launched(script)
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_an_error_in_a_forked_child_is_not_the_process_own(
    write: Callable[[str, str], Path],
) -> None:
    script = write(
        "train.py",
        "import os, time\n"
        "if os.fork() == 0:\n    raise ValueError('in the child')\n"
        "os.wait()\ntime.sleep(0.5)\nprint('went on')\n",
    )
    done = launched(script)
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_last_words_of_a_killed_process_are_shown(write: Callable[[str, str], Path]) -> None:
    script = alone("print('loss is nan')", "os.kill(os.getpid(), 9)")
    assert "loss is nan" in launched(write("train.py", script)).stderr
