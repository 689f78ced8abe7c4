"""A program's processes: their input, output and signals."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ptools.debug.job import VARIABLE, Job, read_outcomes
from ptools.program.process import Processes

Write = Callable[[str, str], Path]
TWICE = """
import sys
from ptools.debug.job import VARIABLE, Job
from ptools.program.process import Processes
run = Processes("ptools.debug.child")
variables = {VARIABLE: str(Job("watch", sys.argv[1], 0).write())}
for quiet in (False, True):
    ended = run(["script", "script.py"], variables, quiet)
    print("shown" if not quiet else ended.output, ended.code, flush=True)
"""
READER = "import sys; data = sys.stdin.buffer.read(); print(len(data), hash(data))"


def twice(folder: Path, **stdin: object) -> list[str]:
    """What two runs of script.py print, with one stdin for both."""
    call = [sys.executable, "-c", TWICE, str(folder)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(call, stdout=subprocess.PIPE, env=environment, timeout=60, **stdin)  # type: ignore[call-overload]
    return done.stdout.decode().split()  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_a_pipe_is_read_twice(size: int, write: Write, folder: Path) -> None:
    write("script.py", READER)
    length, digest, _, _, again, digest_again, _ = twice(folder, input=os.urandom(size))
    assert (length, digest) == (again, digest_again)
    assert int(length) == size


def test_a_second_run_reads_what_the_first_left(write: Write, folder: Path) -> None:
    write(
        "script.py",
        "import os, pathlib\n"
        "first = not os.path.exists('there'); pathlib.Path('there').touch()\n"
        "print(len(os.read(0, 3)) if first else len(os.fdopen(0).read()))\n",
    )
    assert twice(folder, input=b"x" * 200_000) == ["3", "shown", "0", "200000", "0"]


def test_a_file_is_read_from_where_it_stood(write: Write, folder: Path) -> None:
    write("script.py", "import sys; print(sys.stdin.read())")
    write("input.txt", "header body")
    with (folder / "input.txt").open("rb", buffering=0) as file:
        file.seek(7)
        assert twice(folder, stdin=file) == ["body", "shown", "0", "body", "0"]


def run(folder: Path, quiet: bool = True, **job: object) -> tuple[object, object]:
    told = Job("watch", str(folder), 0, **job)  # type: ignore[arg-type]
    ended = Processes("ptools.debug.child")(
        ["script", "script.py"], {VARIABLE: str(told.write())}, quiet
    )
    return ended, next(read_outcomes(str(folder)))


def test_of_an_endless_output_the_end_is_kept(write: Write, folder: Path) -> None:
    write("script.py", "for n in range(400_000): print('a long line of an output', n)\n")
    ended, _ = run(folder)
    assert ended.output.endswith(" 399999\n")  # type: ignore[attr-defined]
    assert len(ended.output) <= 1 << 16  # type: ignore[attr-defined]


def test_a_process_that_was_left_behind_holds_nobody_up(write: Write, folder: Path) -> None:
    write(
        "script.py",
        "import subprocess\n"
        "left = subprocess.Popen(['sleep', '5'])\n"
        "print('done', left.pid, flush=True)\n",
    )
    ended, _ = run(folder)
    done, pid = ended.output.split()  # type: ignore[attr-defined]
    assert done == "done"
    os.kill(int(pid), 9)


def test_every_error_behind_an_error_is_told(write: Write, folder: Path) -> None:
    write("script.py", "try:\n    1 / 0\nexcept Exception:\n    raise SystemExit(4)\n")
    ended, outcome = run(folder)
    assert ended.code == 4  # type: ignore[attr-defined]
    assert outcome.errors == ("SystemExit: 4", "ZeroDivisionError: division by zero")  # type: ignore[attr-defined]
    assert outcome.ended and not outcome.watched and not outcome.stopped  # type: ignore[attr-defined]


def test_what_is_asked_on_a_terminal_is_noted(write: Write, folder: Path) -> None:
    write("script.py", "input('name? ')")
    ours, theirs = os.openpty()
    os.write(ours, b"you\n")
    kept = os.dup(0)
    os.dup2(theirs, 0)
    try:
        _, outcome = run(folder)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert outcome.asked  # type: ignore[attr-defined]


def test_a_program_ends_with_the_process_that_watches_it(write: Write, folder: Path) -> None:
    write(
        "script.py",
        "import time\nprint('shown', flush=True)\ntime.sleep(60)\n",
    )
    call = [sys.executable, "-c", TWICE, str(folder)]
    watching = subprocess.Popen(call, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert watching.stdout is not None
    with watching.stdout as output:
        assert output.readline() == b"shown\n"
        watching.kill()
        assert output.read() == b""  # it comes to its end: nobody has it open any more
    watching.wait()
