"""Where a process was, read from what faulthandler really writes."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ptools.launcher.records import Failure
from ptools.launcher.stacks import last_stack, place, where, with_stack

Write = Callable[[str, str], Path]

TELL = """\
import faulthandler, signal, sys, threading, time
file = open("stack_0.txt", "w")
faulthandler.enable(file, all_threads=False)
faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
"""


def asked(script: Path, times: int) -> None:
    """Run a script that says when it is where it wants to be asked, and ask."""
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(times):
        time.sleep(0.2)
        process.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    process.kill()
    process.communicate()


def test_the_last_of_several_answers_is_read_and_of_it_the_main_thread(write: Write) -> None:
    script = write(
        "à.py",
        TELL
        + "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
        + "def early(): time.sleep(0.3)\n"
        + "def late(): threading.Event().wait()\n"
        + "print(flush=True)\nearly()\nlate()\n",
    )
    asked(script, times=3)
    stack = last_stack(Path("stack_0.txt"))
    assert stack is not None and stack.fatal is None
    assert [frame.function for frame in stack.frames] == ["wait", "wait", "late", "<module>"]
    assert stack.frames[2].source == "def late(): threading.Event().wait()"
    assert where(stack) == f"{place(stack.frames[2])} in late (in wait)"
    assert place(stack.frames[2]) == "à.py:7"


def test_a_segmentation_fault_is_given_its_line(write: Write) -> None:
    script = write(
        "crash.py", TELL + "import ctypes\ndef step():\n    ctypes.string_at(0)\nstep()\n"
    )
    process = subprocess.run([sys.executable, script])
    assert process.returncode == -signal.SIGSEGV
    stack = last_stack(Path("stack_0.txt"))
    assert stack is not None and stack.fatal == "Segmentation fault"
    died = Failure(0, 1, "killed", "killed by SIGSEGV", "killed", exit_code=139)
    frames = with_stack(died, Path()).frames
    assert [frame.function for frame in frames] == ["<module>", "step", "string_at"]
    assert frames[1].source == "ctypes.string_at(0)"


def test_a_process_that_was_only_asked_where_it_was_did_not_die_there(write: Write) -> None:
    write("stack_0.txt", 'Current thread 0x01 (most recent call first):\n  File "a", line 1 in f\n')
    died = Failure(0, 1, "killed", "killed by SIGKILL", "killed", exit_code=137)
    assert with_stack(died, Path()) is died


def test_a_fatal_error_after_an_answer_is_the_last_word(write: Write) -> None:
    file = write(
        "stack_0.txt",
        'Thread 0x02 (most recent call first):\n  File "a.py", line 1 in f\n\n'
        'Current thread 0x01 (most recent call first):\n  File "a.py", line 2 in g\n'
        "Fatal Python error: Aborted\n\n"
        'Current thread 0x02 [pin] (most recent call first):\n  File "a.py", line 3 in h\n\n'
        'Thread 0x01 (most recent call first):\n  File "a.py", line 4 in i\n\n'
        "Current thread's C stack trace (most recent call first):\n  Binary file x\n",
    )
    stack = last_stack(file)
    assert stack is not None and stack.fatal == "Aborted"
    assert [frame.function for frame in stack.frames] == ["h"]


def test_decorators_of_torch_are_not_what_a_process_waits_in(write: Write) -> None:
    library = "/v/lib/python3.11/site-packages/torch/distributed"
    file = write(
        "stack_0.txt",
        "Current thread 0x01 (most recent call first):\n"
        f'  File "{library}/distributed_c10d.py", line 3 in all_reduce\n'
        f'  File "{library}/c10d_logger.py", line 2 in wrapper\n'
        '  File "train.py", line 6 in step\n'
        '  File "train.py", line 9 in <module>\n',
    )
    stack = last_stack(file)
    assert stack is not None
    assert where(stack) == "train.py:6 in step (in all_reduce)"


@pytest.mark.parametrize("text", ["", "nonsense\n", "\x00\xff"])
def test_a_file_without_a_stack_has_none(write: Write, text: str) -> None:
    assert last_stack(write("stack_0.txt", text)) is None
    assert last_stack(Path("missing.txt")) is None


def test_what_cpp_said_before_it_aborted_is_the_failure(write: Write) -> None:
    write(
        "rank_0.log",
        "step 1\nterminate called after throwing an instance of 'c10::DistBackendError'\n"
        "  what():  [Rank 0] Watchdog caught collective operation timeout\n",
    )
    died = Failure(0, 1, "killed", "killed by SIGABRT", "killed", exit_code=134)
    found = with_stack(died, Path())
    assert found.type == "DistBackendError"
    assert found.message == "[Rank 0] Watchdog caught collective operation timeout"
