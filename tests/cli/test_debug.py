"""`ptools debug` as it is typed: whatever the script is like, it behaves as under plain Python."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ptools.cli import main

Write = Callable[[str, str], Path]
Done = subprocess.CompletedProcess[str]
NO_TORCH = "this program did not import torch: nothing was watched"
NAN = """
import sys, torch
torch.manual_seed(0)
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.SGD([weight], lr=0.1)
for step in range(6):
    x = torch.zeros(3) if step == 4 else torch.randn(3)
    loss = (x * weight / x.norm()).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(step, loss.item().hex(), flush=True)
"""


def typed(*words: str, text: str | None = None, **variables: str) -> Done:
    """What a person sees who types it."""
    call = [sys.executable, "-m", "ptools", "debug", *words]
    environment = {**os.environ, **variables}
    return subprocess.run(
        call, input=text, capture_output=True, text=True, timeout=120, env=environment
    )


def plain(*words: str, text: str | None = None) -> Done:
    """The same under plain Python."""
    return subprocess.run(
        [sys.executable, *words], input=text, capture_output=True, text=True, timeout=60
    )


def test_the_line_of_a_nan_is_named(write: Write, folder: Path) -> None:
    write("train.py", NAN)
    done = typed("--json", "found.json", "train.py")
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith(plain("train.py").stdout.partition("4 ")[0])
    assert done.stdout.splitlines()[-1].endswith(" at train.py:8")
    assert "the loss is NaN at step 4" in done.stderr
    assert "running again from the same seed in mode nan" in done.stderr
    told = json.loads((folder / "found.json").read_text())
    assert (told["command"], told["schema"], told["exit_code"]) == ("debug", 1, 3)
    assert [one["mode"] for one in told["passes"]] == ["watch", "nan"]
    role, place = told["findings"][0]["places"][0]
    assert (role, place["line"], told["findings"][0]["step"]) == ("made", 8, 4)


def test_a_failure_in_the_middle_of_torch_is_told_as_python_tells_it(write: Write) -> None:
    write(
        "train.py",
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        try:\n"
        "            return x @ x\n"
        "        except RuntimeError as error:\n"
        "            raise KeyError(x.shape) from error\n"
        "torch.nn.Sequential(Net())(torch.ones(2, 3))\n",
    )
    expected = plain("train.py")
    done = typed("train.py")
    assert (done.returncode, done.stderr) == (expected.returncode, expected.stderr)
    assert "exit code is 1" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "script",
    [
        "def f():\n    1 / 0\ntry:\n    f()\nexcept ZeroDivisionError:\n    open('no/where')\n",
        "x = (1\n",
        "\tx = 1\n  y = 2\n",
        "import sys; print('out'); sys.exit('a reason')\n",
        "raise SystemExit(7)\n",
        "import argparse; argparse.ArgumentParser().parse_args(['--no'])\n",
        "import argparse; argparse.ArgumentParser().parse_args(['--help'])\n",
        "import sys\nsys.excepthook = lambda *error: print('hook', error[1])\nraise OSError(5)\n",
        "import no_such_module\n",
        "import atexit; atexit.register(print, 'at the end')\n",
        "raise ExceptionGroup('both', [ValueError(1), KeyError(2)])\n",
    ],
)
def test_a_script_without_torch_ends_as_under_plain_python(script: str, write: Write) -> None:
    write("script.py", script)
    expected = plain("script.py")
    done = typed("script.py")
    assert (done.returncode, done.stderr) == (expected.returncode, expected.stderr)
    *_, verdict = done.stdout.splitlines()
    assert done.stdout.startswith(expected.stdout)
    assert verdict.startswith(NO_TORCH)
    assert "then mode" not in done.stdout  # no second run


def test_a_source_that_is_not_utf8_is_refused_in_pythons_words(folder: Path) -> None:
    (folder / "script.py").write_bytes(b"x = '\xe9'\n")
    assert typed("script.py").stderr == plain("script.py").stderr


def test_all_words_after_the_script_are_its_own(write: Write) -> None:
    write("my script.py", "import sys; print(sys.argv)")
    done = typed("my script.py", "--mode", "nan", "", "--json", "--help", "--", "-m")
    first = done.stdout.splitlines()[0]
    assert first == "['my script.py', '--mode', 'nan', '', '--json', '--help', '--', '-m']"


def test_a_module_is_run_as_by_python_m(write: Write) -> None:
    write("package/__init__.py", "")
    write("package/sub.py", "import sys; print(__name__, __spec__.name, sys.argv[1:])")
    done = typed("-m", "package.sub", "x")
    assert done.stdout.startswith(plain("-m", "package.sub", "x").stdout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument"),
        (["--"], "Missing argument"),
        ([""], "is a folder"),
        (["nowhere.py"], "there is no script nowhere.py"),
        (["trane.py"], "did you mean train.py?"),
        (["."], ". is a folder"),
        (["-m", "no.such.module"], "there is no module no.such.module"),
        (["--mode", "all", "train.py"], "'all' is not one of"),
        (["--mode", "memory", "--at-step", "3", "train.py"], "--at-step is not for --mode memory"),
        (["--mode", "nan", "--no-rerun", "train.py"], "--no-rerun is for --mode watch"),
        (["--tensorboard", "runs", "train.py"], "--tensorboard is not for --mode watch"),
        (["--json", "no/where.json", "train.py"], "there is no folder"),
        (["--json", "train.py", "train.py"], "already exists"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_runs(
    words: list[str], message: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("train.py", "raise AssertionError\n")
    assert main(["debug", *words]) == 2
    assert message in capsys.readouterr().err


def test_json_replaces_a_file_if_told_to(write: Write, folder: Path) -> None:
    write("script.py", "")
    write("out.json", "old")
    assert typed("--force", "--json", "out.json", "script.py").returncode == 0
    assert json.loads((folder / "out.json").read_text())["watched"] is False


def test_a_spawned_process_imports_the_main_file_again(write: Write) -> None:
    write(
        "script.py",
        "import multiprocessing, sys\n"
        "def work(n):\n"
        "    return n * 2, __name__\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(work, [1, 2]), __file__, __spec__, sys.path[0])\n",
    )
    expected = plain("script.py")
    assert "__mp_main__" in expected.stdout
    done = typed("script.py")
    assert done.stdout.startswith(expected.stdout)
    assert done.stderr == expected.stderr


def test_what_a_fork_does_is_its_own(write: Write) -> None:
    write(
        "script.py",
        "import os\n"
        "if os.fork() == 0:\n"
        "    1 / 0\n"
        "print('status', os.waitstatus_to_exitcode(os.wait()[1]))\n",
    )
    expected = plain("script.py")
    done = typed("script.py")
    assert (done.stdout.splitlines()[0], done.stderr) == ("status 1", expected.stderr)
    assert done.stdout.count(NO_TORCH) == 1


@pytest.mark.parametrize(
    ("last", "code", "told"),
    [
        ("os._exit(9)", 9, "ended past Python"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "killed by SIGSEGV"),
    ],
)
def test_a_program_that_is_gone_at_once(last: str, code: int, told: str, write: Write) -> None:
    write("script.py", f"import os, signal; {last}")
    done = typed("script.py")
    assert done.returncode == code
    assert told in done.stdout
    assert f"the program's exit code is {code}" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_program_and_is_reported(number: int, code: int, write: Write) -> None:
    write("script.py", "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n")
    call = [sys.executable, "-m", "ptools", "debug", "script.py"]
    process = subprocess.Popen(
        call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    # Ctrl-C comes to all that a terminal runs, another signal to the one that it is sent to.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert out.splitlines()[-1].endswith(f"exit code is {code}")
    assert ("KeyboardInterrupt" in err) is (number == signal.SIGINT)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_terminal_that_knows_only_ascii(write: Write) -> None:
    write("scrípt.py", "import os; os._exit(1)")
    done = typed("scrípt.py", PYTHONIOENCODING="ascii:strict", PYTHONUTF8="0", LC_ALL="C")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_program_that_deletes_the_folder_it_runs_in(write: Write, folder: Path) -> None:
    home = folder / "gone"
    home.mkdir()
    (home / "script.py").write_text("import os, shutil; shutil.rmtree(os.getcwd())")
    call = [sys.executable, "-m", "ptools", "debug", "script.py"]
    path = str(Path(__file__).parents[2])
    done = subprocess.run(
        call, cwd=home, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == NO_TORCH


def test_an_endless_wait_for_a_pipe_that_nobody_reads(write: Write) -> None:
    write("script.py", "print('done')")
    never, _ = os.pipe()
    began = time.monotonic()
    call = [sys.executable, "-m", "ptools", "debug", "script.py"]
    done = subprocess.run(call, stdin=never, capture_output=True, text=True, timeout=30)
    assert done.stdout.startswith("done\n")
    assert time.monotonic() - began < 20


DDP = """
import sys, torch
import torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(6):
    x = torch.randn(8, 4)
    if rank == 1 and step == 3 and "nan" in sys.argv:
        x[2] = 0
    h = model(x / x.norm(dim=1, keepdim=True)).sigmoid()
    if "inplace" in sys.argv:
        h += 1
    optimizer.zero_grad()
    h.mean().backward()
    optimizer.step()
"""


def launched(bug: str) -> Done:
    call = [sys.executable, "-m", "ptools", "launch", "--gpus", "cpu", "-n", "2", "--debug"]
    return subprocess.run(
        [*call, "train.py", bug], capture_output=True, text=True, timeout=200, check=False
    )


def test_the_rank_that_made_a_nan_is_named(write: Write) -> None:
    write("train.py", DDP)
    done = launched("nan")
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-1].endswith(" on rank 1 at train.py:13")
    assert "first failure" not in done.stderr  # that it was ended is none of the program
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_in_place_bug_of_all_ranks_is_told_once(write: Write) -> None:
    write("train.py", DDP)
    done = launched("inplace")
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-1].endswith(" on rank 0 at train.py:15")
    assert "the same on rank 1" in done.stdout


@pytest.mark.slow
def test_a_clean_launch_says_how_much_was_watched(write: Write) -> None:
    write("train.py", DDP)
    done = launched("none")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("nothing found in 6 steps and 6 backward calls")


def test_a_program_may_ask_on_a_terminal(write: Write) -> None:
    write("script.py", "print('hello', input('name? '))")
    ours, theirs = os.openpty()
    call = [sys.executable, "-m", "ptools", "debug", "script.py"]
    process = subprocess.Popen(call, stdin=theirs, stdout=subprocess.PIPE, text=True)
    os.write(ours, b"you\n")
    out, _ = process.communicate(timeout=30)
    assert "hello you" in out
    assert process.returncode == 0
