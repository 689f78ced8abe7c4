"""`ptools launch` as it is typed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ptools.cli import launch_pages, main

Write = Callable[[str, str], Path]
Capture = pytest.CaptureFixture[str]
CPU = ("launch", "--gpus", "cpu", "-n", "2")


def typed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What a person sees who types it."""
    call = [sys.executable, "-m", "ptools", *words]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_script_has_all_words_after_it(write: Write, folder: Path) -> None:
    write("script.py", "import sys; print(sys.argv)")
    done = typed(folder, *CPU, "script.py", "--gpus", "9", "-n", "--help", "--", "x")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['script.py', '--gpus', '9', '-n', '--help', '--', 'x']\n"
    done = typed(folder, *CPU, "--", "script.py", "-m")
    assert done.stdout == "['script.py', '-m']\n"


def test_a_failure_is_told_on_stderr_with_the_scripts_code(write: Write, folder: Path) -> None:
    write(
        "script.py",
        "import os, sys, time\n"
        "def step():\n"
        "    while not os.path.exists('there'): pass\n"
        "    if os.environ['RANK'] == '1': time.sleep(0.2), sys.exit(7)\n"
        "    time.sleep(60)\n"
        "print('begun', flush=True)\n"
        "if os.environ['RANK'] == '0': open('there', 'w')\n"
        "step()\n",
    )
    done = typed(folder, *CPU, "script.py")
    assert done.returncode == 7
    assert done.stdout == "begun\n"
    report = done.stderr.splitlines()
    assert "first failure: rank 1: sys.exit(7)" in report
    assert "  at script.py:4 in step" in report
    assert "rank 0 was at script.py:5 in step" in "\n".join(report)
    assert report[-1].startswith("rank 1 failed after ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.py"], "there is no script nowhere.py"),
        (["-m", "no_such_module"], "there is no module no_such_module"),
        (["broken.py"], "broken.py:1: invalid syntax"),
        (["."], ". is a folder"),
        (["--gpus", "4", "good.py"], "GPU"),
        (["--gpus", "0;2", "good.py"], "0;2"),
        (["--nodes", "2", "good.py"], "must know where to meet"),
        (["--amp", "bf61", "good.py"], "bf61"),
        (["--amp", "fp16", "--inject", "good.py"], "GradScaler"),
        (["--inject", "good.py"], "--inject"),
        (["-n", "0", "good.py"], "-n"),
    ],
)
def test_wrong_calls_are_one_sentence_before_anything_starts(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    write("good.py", "open('started', 'w')")
    write("broken.py", "def broken(: pass")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    devices = [] if "--gpus" in words else ["--gpus", "cpu"]
    assert main(["launch", *devices, *words]) == 2
    out, err = capsys.readouterr()
    assert message in err and "Traceback" not in err and not out
    assert not Path("started").exists()


def test_a_dry_run_is_a_command_for_the_shell(write: Write, capsys: Capture) -> None:
    write("my script.py", "")
    assert main([*CPU, "--dry-run", "my script.py", "--lr", "0.1"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("torchrun --standalone --nproc-per-node 2 'my script.py' --lr 0.1\n")
    assert "OMP_NUM_THREADS=" in out


def test_the_launcher_imports_no_torch(write: Write, folder: Path) -> None:
    write("script.py", "")
    code = (
        "import sys; from ptools.cli import main; code = main(sys.argv[1:])\n"
        "print(code, {'torch', 'numpy'} & sys.modules.keys())"
    )
    call = [sys.executable, "-c", code, *CPU, "script.py"]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, env={**os.environ})
    assert done.stdout == "0 set()\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.py", "-n", "9"], (["a.py", "-n", "9"], {})),
        (["--gpus", "0,1", "-n", "2", "a.py"], (["a.py"], {"gpus": "0,1", "procs": 2})),
        (["-m", "pkg.mod", "--x"], (["pkg.mod", "--x"], {"module": True})),
        (["--amp", "bf16", "a.py"], None),  # Typer reads all others, and what is wrong
        (["-n", "0", "a.py"], None),
        (["--", "a.py"], None),
        (["-n"], None),
        (["-m"], None),
        ([], None),
    ],
)
def test_the_usual_options_are_read_without_typer(
    words: list[str], expected: tuple[list[str], dict[str, object]] | None
) -> None:
    assert launch_pages.plain(words) == expected


def test_a_usual_run_does_not_wait_for_typer(write: Write, folder: Path) -> None:
    write("script.py", "")
    code = (
        "import sys; from ptools.cli import main; main(sys.argv[1:]); print('typer' in sys.modules)"
    )

    def run(**environment: str) -> str:
        call = [sys.executable, "-c", code, *CPU, "script.py"]
        done = subprocess.run(
            call, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}
        )
        return done.stdout

    assert run() == "False\n"
    assert run(PTOOLS_LAUNCH_SHOW="all") == "True\n"  # an option from the environment
