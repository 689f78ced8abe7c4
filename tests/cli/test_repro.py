"""`ptools repro` as it is typed: what goes together, records, resumed runs, scripts that fail."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ptools.cli import main

sys.path.insert(0, str(Path(__file__).parents[1]))
from warm import Warm

Write = Callable[[str, str], Path]
TRAIN = """
import pathlib, sys
import torch
torch.manual_seed(0)
net = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=float(sys.argv[1]))
start, saved = 0, pathlib.Path("last.pt")
if saved.exists():
    net_state, start = torch.load(saved)
    net.load_state_dict(net_state)
for step in range(start, 6):
    torch.manual_seed(step)
    loss = net(torch.randn(8, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    torch.save((net.state_dict(), step + 1), saved)
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    pytest.importorskip("torch")
    runner = Warm(
        tmp_path_factory.mktemp("warm"),
        "ptools.repro.child",
        "ptools.repro.recording.recorder",
        "ptools.repro.resume.recorder",
    )
    yield runner
    runner.close()


@pytest.fixture
def repro(
    warm: Warm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Type a command; its exit code, stdout and stderr. Seeds of hash() are all the same."""

    def run(words: Any, variables: Any, quiet: bool) -> Any:
        return warm(words, {**variables, "PYTHONHASHSEED": "0"}, quiet)

    monkeypatch.setattr("ptools.program.process.Processes", lambda name, aside: run)

    def typed(*words: str) -> tuple[int, str, str]:
        code = main(["repro", *words])
        return code, *capsys.readouterr()

    return typed


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--perturb fs --record run.fp", "--perturb does nothing with --record"),
        ("--perturb fs --against run.fp", "--perturb does nothing with --against"),
        ("--perturb fs --resume-at 2", "--perturb does nothing with --resume-at"),
        ("--steps 9 --resume-at 2", "--steps does nothing with --resume-at"),
        ("--exact --resume-at 2", "--exact does nothing with --resume-at"),
        ("--tolerance 0.1 --resume-at 2", "--tolerance does nothing with --resume-at"),
        ("--tolerance 0.1 --record run.fp", "--tolerance does nothing with --record"),
        ("--force --against run.fp", "--force does nothing with --against"),
        ("-f", "--force is for --record"),
        ("--resume-args x", "--resume-args is for --resume-at"),
        ("--resume-args x --record run.fp", "--resume-args does nothing with --record"),
        ("--record a.fp --against b.fp", "--record and --against do not go together"),
        ("--resume-at 2 --against b.fp", "--resume-at and --against do not go together"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    options: str, told: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("train.py", "raise SystemExit('it ran')")
    assert main(["repro", *options.split(), "train.py"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}\n")


def test_an_option_of_the_project_may_do_nothing(write: Write, repro: Any) -> None:
    write("pyproject.toml", "[tool.ptools.repro]\nperturb = 'threads'\n")
    write("train.py", TRAIN)
    code, out, err = repro("--record", "run.fp", "train.py", "0.9")
    assert code == 0, err
    assert out.splitlines()[-1].startswith("recorded run.fp: 6 steps")


def test_a_record_is_compared_with_by_the_line_that_is_told(write: Write, repro: Any) -> None:
    write("job/__init__.py", "")
    write("job/train.py", TRAIN)
    code, out, err = repro("--record", "run.fp", "-m", "job.train", "0.9")
    assert code == 0, err
    told = out.splitlines()[0].partition("ptools repro ")[2]
    Path("last.pt").unlink()
    code, out, err = repro(*told.split())
    assert (code, out.splitlines()[-1][:26]) == (0, "run.fp: identical: 6 steps")
    Path("last.pt").unlink()
    code, out, err = repro("--json", "--against", "run.fp", "-m", "job.train", "0.5")
    found = json.loads(out)
    assert (code, found["identical"], found["verdict"]["op"]) == (3, False, "aten::mul_")
    assert "NumPy" not in found["verdict"]["advice"]


def test_json_is_alone_on_stdout(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    write("plain.py", "print('of the script')\n")
    assert main(["repro", "--json", "--perturb", "none", "plain.py"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["identical"] is None  # there was nothing to compare
    assert err == "of the script\n"


def test_what_a_checkpoint_lacks_is_named(write: Write, repro: Any) -> None:
    write("train.py", TRAIN)
    code, out, _ = repro("--resume-at", "3", "train.py", "0.9")
    assert code == 3
    assert "momentum_buffer" in out
    code, out, _ = repro("--resume-at", "3", "train.py", "0.0")
    assert (code, Path("last.pt").exists()) == (0, False)  # put back


@pytest.mark.parametrize(
    ("text", "told", "runs"),
    [
        ("import sys, torch\nsys.exit(2)\n", "this program computed nothing with torch", 2),
        (TRAIN + "sys.exit(4)\n", "identical: 6 steps", 5),
    ],
)
def test_a_script_that_fails_by_itself_is_no_clean_run(
    text: str, told: str, runs: int, write: Write, repro: Any, warm: Warm
) -> None:
    write("train.py", text)
    before = len(warm.outputs)
    code, out, _ = repro("train.py", "0.9")
    last = out.splitlines()[-1]
    assert last.startswith(told)
    assert last.endswith(f"; it ends with exit code {code}") == bool(code)
    assert len(warm.outputs) - before == runs


def test_ptools_itself_is_no_program_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repro", "-m", "ptools", "seed", "train.py"]) == 2
    assert "starts another Python" in capsys.readouterr().err
