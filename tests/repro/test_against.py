"""A program's run is recorded, and another run is compared with the record."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptools.errors import PtoolsError, UsageError
from ptools.repro.engine import repro_script
from ptools.repro.events import Event, Value
from ptools.repro.fingerprints.against import record_script, repro_against
from ptools.repro.fingerprints.apart import error_of, errors_of
from ptools.repro.fingerprints.fingerprint import Fingerprint
from ptools.repro.fingerprints.recordfile import read_record, write_record

Write = Callable[[str, str], Path]

TRAIN = """
import sys
import torch
from torch import nn
torch.manual_seed(0)
noise, at = (float(sys.argv[1]), int(sys.argv[2])) if sys.argv[1:] else (0.0, 0)
net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
for step in range(24):
    x, y = torch.randn(16, 8), torch.randint(4, (16,))
    loss = nn.functional.cross_entropy(net(x), y)
    if step >= at:
        loss = loss * (1 + noise)  # <- parts
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
PARTS = TRAIN.splitlines().index("        loss = loss * (1 + noise)  # <- parts") + 1


@pytest.fixture
def script(write: Write) -> str:
    return str(write("train.py", TRAIN))


def record(script: str, warm: Any, *arguments: str, **ways: Any) -> Path:
    record_script(script, arguments, record="run.fp", runner=warm, **ways)
    return Path("run.fp")


def test_a_run_that_repeats_is_identical_to_its_record(script: str, warm: Any) -> None:
    recorded = record_script(script, record="run.fp", runner=warm)
    report = repro_against(script, record="run.fp", runner=warm)
    assert (report.verdict, report.exit_code, len(report.runs)) == (None, 0, 1)
    assert (recorded.steps, report.steps) == (24, 24)
    assert recorded.beats == report.beats > 24
    assert not report.surroundings
    assert recorded.nbytes == Path("run.fp").stat().st_size < 30_000
    assert json.dumps(recorded.to_dict()) and json.dumps(report.to_dict())


def test_the_operation_is_named_where_operations_were_recorded(script: str, warm: Any) -> None:
    record(script, warm)
    report = repro_against(script, ["0.001", "1"], record="run.fp", runner=warm)
    assert report.exit_code == 3
    assert report.verdict is not None
    assert report.verdict.op == "aten::mul"
    assert report.verdict.where is not None
    assert report.verdict.where.line == PARTS
    assert report.surroundings == {"arguments": ("", "0.001 1")}


def test_later_the_step_is_told_and_how_to_find_the_operation(script: str, warm: Any) -> None:
    record(script, warm, "0", "20")
    report = repro_against(script, ["0.001", "20"], record="run.fp", runner=warm)
    assert report.verdict is not None
    assert (report.verdict.step, report.verdict.value) == (20, "the loss")
    assert any("the state was the same after step 16" in one for one in report.verdict.facts)
    assert "--exact --steps 21" in report.verdict.advice


def test_an_exact_record_names_the_operation_anywhere(script: str, warm: Any) -> None:
    record(script, warm, "0", "20", exact=True, steps=22)
    report = repro_against(script, ["0.001", "20"], record="run.fp", runner=warm)
    assert report.verdict is not None
    assert (report.verdict.step, report.verdict.op) == (20, "aten::mul")
    assert report.steps == 22


def test_within_a_tolerance_the_errors_and_their_growth_are_told(script: str, warm: Any) -> None:
    record(script, warm, "0", "4")
    report = repro_against(script, ["1e-6", "4"], record="run.fp", tolerance=1e-4, runner=warm)
    assert (report.verdict, report.exit_code) == (None, 0)
    errors = report.errors
    assert errors is not None and errors.worst is not None
    assert [row.step for row in errors.rows] == [1, 2, 4, 8, 16, 24]
    assert [row.state for row in errors.rows[:3]] == [0, 0, 0]
    assert all(row.loss and 1e-8 < row.loss < 1e-4 for row in errors.rows[3:])
    assert 1e-7 < errors.worst.error < 1e-4
    assert json.dumps(report.to_dict(), allow_nan=False)


def test_the_first_error_that_is_too_large_is_told(script: str, warm: Any) -> None:
    record(script, warm, "0", "2", exact=True)
    report = repro_against(script, ["1e-3", "2"], record="run.fp", tolerance=1e-5, runner=warm)
    assert report.exit_code == 3
    assert report.verdict is not None
    assert (report.verdict.kind, report.verdict.op, report.verdict.step) == (
        "tolerance",
        "aten::mul",
        2,
    )
    assert report.verdict.where is not None
    assert report.verdict.where.line == PARTS


def test_two_runs_are_compared_within_a_tolerance_too(write: Write, warm: Any) -> None:
    noisy = TRAIN.replace("* (1 + noise)", "* (1 + 1e-5 * (time.time() % 1))")
    script = str(write("noisy.py", f"import time\n{noisy}"))
    report = repro_script(script, perturb=[], tolerance=1e-3, runner=warm)
    assert (report.verdict, report.exit_code) == (None, 0)
    assert report.errors is not None and report.errors.worst is not None
    assert repro_script(script, perturb=[], runner=warm).exit_code == 3


def test_another_environment_is_told_and_goes_on(script: str, warm: Any) -> None:
    about, packed = read_record(record(script, warm))
    environment = {**about.environment, "torch": "1.0", "threads": "64"}
    changed = type(about)(**{**vars(about), "environment": environment})
    write_record("run.fp", changed, packed, force=True)
    report = repro_against(script, record="run.fp", runner=warm)
    assert report.verdict is None
    assert {"torch", "threads"} == set(report.surroundings)
    assert report.surroundings["torch"][0] == "1.0"


def test_the_commit_is_recorded(script: str, warm: Any) -> None:
    for words in ("init -q", "add train.py", "-c user.name=a -c user.email=a@b commit -qm one"):
        subprocess.run(["git", *words.split()], check=True)
    record(script, warm)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout
    told = read_record("run.fp")[0].environment["commit"]
    assert commit.startswith(told)
    Path(script).write_text(TRAIN + "\n")
    report = repro_against(script, record="run.fp", runner=warm)
    assert report.surroundings == {"commit": (told, f"{told} and changes")}


def test_a_record_is_a_fingerprint_of_the_library(script: str, warm: Any) -> None:
    first = Fingerprint.load(record(script, warm))
    second = Fingerprint.load(record(script, warm, force=True))
    assert first == second
    assert first.compare(second) is None


def test_a_script_that_fails_is_recorded_as_far_as_it_came(write: Write, warm: Any) -> None:
    script = str(write("fails.py", TRAIN + "raise ValueError('bad label')\n"))
    recorded = record_script(script, record="run.fp", runner=warm)
    assert recorded.exit_code == 1
    report = repro_against(script, record="run.fp", runner=warm)
    assert (report.verdict, report.exit_code) == (None, 1)


def test_an_existing_file_is_refused_before_the_script_runs(script: str, warm: Any) -> None:
    Path("run.fp").write_text("mine")
    runs = len(warm.outputs)
    with pytest.raises(UsageError, match="already exists"):
        record(script, warm)
    assert len(warm.outputs) == runs
    assert Path("run.fp").read_text() == "mine"


def test_a_record_of_other_ways_is_one_clear_error(script: str, warm: Any) -> None:
    record(script, warm, steps=5)
    with pytest.raises(UsageError, match="recorded with --steps 5"):
        repro_against(script, record="run.fp", steps=6, runner=warm)
    with pytest.raises(UsageError, match="recorded without --exact"):
        repro_against(script, record="run.fp", exact=True, runner=warm)
    with pytest.raises(UsageError, match="no tolerance"):
        repro_against(script, record="run.fp", tolerance=0.0, runner=warm)
    assert repro_against(script, record="run.fp", steps=5, runner=warm).verdict is None


def test_a_program_without_torch_is_not_recorded(write: Write, folder: Path) -> None:
    script = str(write("plain.py", "print(1)\n"))
    with pytest.raises(PtoolsError, match="did not import torch"):
        record_script(script, record="run.fp")
    assert not (folder / "run.fp").exists()


def test_a_program_that_fails_at_once_is_not_recorded(
    write: Write, folder: Path, warm: Any
) -> None:
    script = str(write("usage.py", "import sys, torch\nsys.exit(2)\n"))
    with pytest.raises(PtoolsError, match="nothing is recorded; it ends with exit code 2"):
        record_script(script, record="run.fp", runner=warm)
    assert not (folder / "run.fp").exists()


def of(name: str, digest: int, *numbers: float, what: str = "4 float32") -> Value:
    return Value(name, what, digest, (), numbers)


def test_errors_are_relative_to_the_size_of_the_tensor() -> None:
    assert error_of(of("x", 1, 1.0, 0.0), of("x", 2, 1.0, 1e-6)) == pytest.approx(1e-6)
    assert error_of(of("x", 1, 100.0, 1.0), of("x", 2, 100.0, 2.0)) == pytest.approx(0.01)
    assert error_of(of("x", 1, 1.0, 100.0), of("x", 2, 1.0, 101.0)) == pytest.approx(1 / 101)
    assert error_of(of("x", 1, 1.0), of("x", 1, 2.0)) == 0  # the same bits
    nan = float("nan")
    assert error_of(of("x", 1, nan, nan), of("x", 2, nan, nan)) == 0
    assert error_of(of("x", 1, 1.0, nan), of("x", 2, 1.0, 1.0)) == float("inf")


def test_integers_and_shapes_are_not_small_errors() -> None:
    assert error_of(of("x", 1), of("x", 2)) == float("inf")
    other = of("x", 2, 1.0, 1.0, what="5 float32")
    assert error_of(of("x", 1, 1.0, 1.0), other) == float("inf")
    assert error_of(of("lr", 1, 0.1, what="0.1"), of("lr", 2, 0.2, what="0.2")) == 0.5


def test_a_small_gradient_is_measured_by_all_gradients() -> None:
    def state(small: float, digest: int) -> Event:
        gradients = of("gradient of a", 1, 1.0, 1.0), of("gradient of b", digest, small, small)
        return Event("state", "the state", 1, 0, gradients)

    assert errors_of(state(1e-9, 2), state(-1e-9, 3)) == [0, pytest.approx(2e-9)]
