"""`ptools seed` as it is typed: the script is its own, and repeats."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ptools.cli import main

Write = Callable[[str, str], Path]
Done = subprocess.CompletedProcess[str]
HEADER = "seed 1029; "
UNSET = ("PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "RANK")


def typed(*words: str, text: str | None = None, **variables: str) -> Done:
    """What a person sees who types it."""
    plain = {name: value for name, value in os.environ.items() if name not in UNSET}
    call = [sys.executable, "-m", "ptools", "seed", *words]
    return subprocess.run(
        call, input=text, capture_output=True, text=True, timeout=120, env={**plain, **variables}
    )


TRAINING = """
import random, sys
import numpy as np, torch
from torch.utils.data import DataLoader

class Points(torch.utils.data.Dataset):
    def __init__(self):
        self.generator = np.random.default_rng()
    def __len__(self):
        return 4
    def __getitem__(self, index):
        made = np.random.default_rng().random()
        return torch.tensor([self.generator.random(), made, np.random.rand(), random.random()])

print(random.random(), random.Random().random(), np.random.rand(), torch.rand(()).item())
print(np.random.default_rng().random(), *{f"class {n}" for n in range(9)})
for epoch in range(2):
    for batch in DataLoader(Points(), shuffle=True, num_workers=2):
        print(*batch[0].tolist())
print(torch.backends.cudnn.deterministic, torch.empty(2).tolist())
if "--put" in sys.argv:
    torch.manual_seed(0)
    torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
"""


def test_a_training_that_seeds_nothing_repeats_to_the_last_bit(write: Write) -> None:
    lines = write("train.py", TRAINING).read_text().splitlines()
    first, second = typed("train.py"), typed("train.py", "--put")
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert first.stdout.splitlines()[-1] == "True [nan, nan]"
    assert len({*first.stdout.splitlines()[2:-1]}) == 8  # no two samples alike
    assert first.stderr.startswith(HEADER)
    assert len(first.stderr.splitlines()) == 1
    # What could not be set is told by its line.
    _, own, _, put = second.stderr.splitlines()
    seeded, called = (f"train.py:{len(lines) - after}" for after in (1, 0))
    assert own == f"the program seeds itself from there on: torch.manual_seed(0) at {seeded}"
    assert put.startswith(f"  put_ at {called}, once: write x.view(-1).index_copy_")


def test_another_seed_draws_other_numbers(write: Write) -> None:
    write("draw.py", "import random; print(random.random(), random.Random().random())")
    first, other = typed("draw.py"), typed("--seed", "3", "draw.py")
    assert not {*first.stdout.split()} & {*other.stdout.split()}


def test_strict_stops_and_says_why_after_the_traceback(write: Write) -> None:
    write("put.py", "import torch\ntorch.zeros(2).put_(torch.tensor([0]), torch.ones(1))\n")
    done = typed("--deterministic", "strict", "put.py")
    assert done.returncode == 1
    _, opening, *_, error, told = done.stderr.splitlines()
    assert opening.startswith("Traceback")
    assert error.startswith("RuntimeError: put_ does not have")
    assert told.startswith("put_ has no deterministic version, called at put.py:2: write")
    assert "ptools/" not in done.stderr  # no frame of ours


def test_a_program_that_seeds_itself_well_draws_what_it_draws_alone(write: Write) -> None:
    file = write(
        "train.py",
        """
import random, numpy as np, torch
from torch.utils.data import DataLoader
random.seed(1); np.random.seed(1); torch.manual_seed(1)
class Points(torch.utils.data.Dataset):
    def __len__(self): return 6
    def __getitem__(self, index):
        return index, torch.rand(()), random.random(), np.random.rand()
print(torch.rand(2), np.random.default_rng(2).random(), random.Random(2).random())
for batch in DataLoader(Points(), shuffle=True, num_workers=2): print(batch)
""",
    )
    alone = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True)
    assert typed("train.py").stdout == alone.stdout


def test_the_script_has_its_own_pid_input_and_exit_code(write: Write) -> None:
    write("echo.py", "import os, sys; print(os.getpid(), input(), sys.argv); sys.exit(7)")
    call = [sys.executable, "-m", "ptools", "seed", "echo.py", "--lr", "1"]
    process = subprocess.Popen(
        call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out, _ = process.communicate("hello\n")
    assert out == f"{process.pid} hello ['echo.py', '--lr', '1']\n"
    assert process.returncode == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_as_it_ends_python(write: Write, number: int) -> None:
    write("kill.py", f"import os, signal; os.kill(os.getpid(), {number})\nsignal.pause()")
    assert typed("kill.py").returncode == -number


def test_an_error_is_shown_as_python_shows_it(write: Write) -> None:
    file = write("fail.py", "def go():\n    raise ValueError('no')\ngo()\n")
    alone = subprocess.run([sys.executable, str(file)], capture_output=True, text=True)
    told = typed(str(file)).stderr.removeprefix(HEADER).partition("\n")[2]
    assert told == alone.stderr


def test_a_module_is_run_as_python_runs_it(write: Write) -> None:
    write("package/__init__.py", "")
    write("package/go.py", "import sys; print(__name__, __package__, sys.argv[1:])")
    assert typed("-m", "package.go", "x").stdout == "__main__ package ['x']\n"


def test_the_environment_is_set_and_the_users_own_is_kept(write: Write) -> None:
    write(
        "show.py",
        "import os, sys\n"
        "print(os.environ['PYTHONHASHSEED'], hash('a'), 'torch' in sys.modules, os.environ)",
    )
    first, second = typed("show.py"), typed("show.py")
    assert first.stdout.split()[:3] == second.stdout.split()[:3]
    assert first.stdout.split()[2] == "False"  # nor does the program wait for torch
    assert first.stdout.startswith("1029 ")
    assert "'CUBLAS_WORKSPACE_CONFIG': ':4096:8'" in first.stdout
    kept = typed("show.py", PYTHONHASHSEED="5", OMP_NUM_THREADS="3")
    assert kept.stdout.startswith("5 ")
    assert "seed 1029; 3 threads; " in kept.stderr
    assert "kept as it was set: PYTHONHASHSEED=5, OMP_NUM_THREADS=3\n" in kept.stderr


def test_env_as_a_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    assert main(["seed", "--seed", "3", "env"]) == 0
    page = capsys.readouterr().out
    assert "\n  export PYTHONHASHSEED=3\n" in page
    assert "\n  torch.use_deterministic_algorithms(True, warn_only=True)\n" in page
    assert page.splitlines()[-1].endswith("; ptools seed SCRIPT sets all of them")


@pytest.mark.parametrize("words", [["--json", "env"], ["env", "--json"]])
def test_env_as_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seed", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["command"], told["schema"]) == ("seed env", 1)
    by_name = {one["name"]: one for one in told["settings"]}
    assert by_name["PYTHONHASHSEED"]["line"] == "export PYTHONHASHSEED=1029"


def test_a_script_called_env_is_run_by_its_path(write: Write) -> None:
    write("env", "print('mine')")
    assert typed("./env").stdout == "mine\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no script is given"),
        (["--seed", "4294967296", "x.py"], "4294967295"),
        (["--seed", "-1", "x.py"], "'--seed'"),
        (["--deterministic", "hard", "x.py"], "'hard' is not one of 'strict', 'warn', 'off'"),
        (["missing.py"], "there is no script missing.py"),
        (["-m", "no.module"], "there is no module no.module"),
        (["--json", "x.py"], "--json is for ptools seed env"),
        (["env", "more"], "env takes no more"),
    ],
)
def test_a_wrong_call_is_one_sentence(
    words: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["seed", *words]) == 2
    assert told in capsys.readouterr().err
