"""`ptools profile-loader` as its user meets it; what it measures is tested with the library."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ptools import loader_profile
from ptools.cli import main
from ptools.errors import PtoolsError
from ptools.loader_profile.report import LoaderProfile, Settings, Span, Trial, Wait

Write = Callable[[str, str], Path]
Run = Callable[..., tuple[int, str, str]]

TRAIN = """
import torch
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __init__(self, count=64):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor([index**2])

def make_loader(batch_size=8):
    print("making")
    return DataLoader(Squares(), batch_size=batch_size)
"""
NOW = Settings(0, 8)
PROFILE = LoaderProfile(
    target="train.py:make_loader",
    cores=2,
    clocks=3,
    batches_per_epoch=8,
    current=Trial(
        settings=NOW,
        rate=640.0,
        low=600.0,
        high=690.0,
        batches=80,
        seconds=1.0,
        batch_samples=8,
        wait=Wait(0.0125, 0.012, 0.013, 0.014, 0.015),
        startup=0.01,
        main_run=0.01,
        worker_run=0.0,
        others=0.0,
        quiet_rate=640.0,
    ),
    predicted={0: 640.0, 1: 700.0},
    warnings=("the machine is busy",),
    spans=(Span("main", "wait", 0.0, 0.01, 0),),
)


class Measured:
    """Stands for the measurement: what it was called with, and what it found."""

    def __init__(self) -> None:
        self.profile = PROFILE
        self.loader: Any = None
        self.options: dict[str, Any] = {}

    def __call__(self, loader: Any, **options: Any) -> LoaderProfile:
        self.loader, self.options = loader, options
        options["progress"]("2 workers")
        print("what a dataset prints")
        return self.profile


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    stand_in = Measured()
    monkeypatch.setitem(vars(loader_profile), "profile_loader", stand_in)
    return stand_in


@pytest.fixture
def run(write: Write, measured: Measured, capsys: pytest.CaptureFixture[str]) -> Run:
    write("train.py", TRAIN)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["profile-loader", *arguments])
        return code, *capsys.readouterr()

    return call


def test_the_page_is_on_stdout_and_the_warnings_on_stderr(run: Run) -> None:
    code, out, err = run("train.py")
    assert code == 0
    assert out.splitlines()[0] == "the loader keeps up with training steps of 12.5 ms or more"
    assert out.splitlines()[-1] == "train.py:make_loader: 640 samples/s"
    assert "warning: the machine is busy" in err
    assert "what a dataset prints" in err and "making" in err


def test_json_is_one_object(run: Run) -> None:
    code, out, _ = run("train.py", "--json")
    report = json.loads(out)
    assert (code, report["command"], report["schema"]) == (0, "profile-loader", 1)
    assert report["current"]["rate"] == 640.0
    assert report["warnings"] == ["the machine is busy"]


@pytest.mark.parametrize(
    ("spec", "more", "batch_size"),
    [
        ("train.py", [], 8),
        ("train.py:make_loader", ["-a", "batch_size=4"], 4),
        ("train:make_loader(batch_size=16)", [], 16),
    ],
)
def test_a_function_is_called_for_its_loader(
    run: Run, measured: Measured, spec: str, more: list[str], batch_size: int
) -> None:
    assert run(spec, *more)[0] == 0
    assert isinstance(measured.loader, DataLoader)
    assert measured.loader.batch_size == batch_size


def test_a_dataset_is_a_target(run: Run, measured: Measured) -> None:
    assert run("train.py:Squares(count=5)")[0] == 0
    assert isinstance(measured.loader, Dataset)
    assert len(measured.loader) == 5


FOUND = {
    "the only loader, before functions": ("loader = make_loader()\nsame = loader", "loader"),
    "the only function": ("", "make_loader"),
    "the only dataset": ("del make_loader\ndata = Squares()", "data"),
    "the only class of a dataset": ("del make_loader", "Squares"),
}


@pytest.mark.parametrize("case", FOUND)
def test_a_name_left_out_is_found(run: Run, write: Write, measured: Measured, case: str) -> None:
    more, name = FOUND[case]
    write("found.py", f"{TRAIN}\n{more}\n")
    assert run("found.py")[0] == 0
    assert measured.options["target"] == f"found.py:{name}"


def test_the_options_reach_the_library(run: Run, measured: Measured) -> None:
    write_options = ["--step-ms", "50", "--workers", "0-2,4", "--batch-sizes", "128,64,64"]
    assert run("train.py", *write_options, "--budget", "8", "--cold", "--lines")[0] == 0
    options = measured.options
    assert (options["step_ms"], options["budget"]) == (50.0, 8.0)
    assert (options["workers"], options["batch_sizes"]) == ((0, 1, 2, 4), (64, 128))
    assert options["cold"] and options["lines"]
    assert run("train.py")[0] == 0
    assert measured.options["workers"] is None
    assert measured.options["batch_sizes"] == ()


def test_the_model_whose_step_is_measured(run: Run, write: Write, measured: Measured) -> None:
    write("net.py", "from torch import nn\nnet = nn.Linear(1, 3)")
    assert run("train.py", "--model", "net.py")[0] == 0
    assert isinstance(measured.options["model"], nn.Linear)


@pytest.mark.parametrize(("least", "code"), [("640", 0), ("641", 3), ("700", 3)])
def test_a_rate_below_the_least_is_exit_code_3(run: Run, least: str, code: int) -> None:
    got, out, err = run("train.py", "--min-rate", least)
    assert got == code
    assert out
    said = f"640 samples/s (600 to 690) is below --min-rate {least}"
    assert (said in err) == (code == 3)


def test_an_interrupted_profile_is_shown(run: Run, measured: Measured) -> None:
    measured.profile = replace(PROFILE, interrupted=True, spans=())
    code, out, _ = run("train.py", "--min-rate", "9000", "--trace", "out.json")
    assert code == 130
    assert out.splitlines()[-1].endswith("INCOMPLETE: interrupted")
    assert not Path("out.json").exists()


def test_the_trace_and_the_runs_are_written(run: Run) -> None:
    code, _, err = run("train.py", "--trace", "out.json", "--tensorboard", "my runs")
    assert code == 0
    assert json.loads(Path("out.json").read_text())["traceEvents"]
    assert list(Path("my runs").rglob("*tfevents*"))
    assert "ui.perfetto.dev" in err and "tensorboard --logdir 'my runs'" in err
    assert run("train.py", "--trace", "out.json", "--force")[0] == 0


def test_what_cannot_be_written_does_not_cost_the_page(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise PtoolsError("the disk is full")

    monkeypatch.setattr("ptools.loader_profile.trace.write_trace", full)
    code, out, err = run("train.py", "--trace", "out.json")
    assert code == 1
    assert out.endswith("640 samples/s\n")
    assert "error: the disk is full" in err


FILES = {
    "trains on import": ("raise RuntimeError('CUDA out of memory')", "bad.py:1"),
    "reads the command line": ("import argparse\nargparse.ArgumentParser().error('x')", "__main__"),
    "holds nothing": ("def train(): ...", "bad.py:train"),
    "has two loaders": (TRAIN + "one = make_loader()\ntwo = make_loader()", "bad.py:two"),
    "has two functions": (TRAIN + "def get_loader(): ...", "bad.py:get_loader"),
    "needs an argument": (TRAIN.replace("batch_size=8", "batch_size"), "-a batch_size="),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_good_gets_one_sentence(run: Run, write: Write, case: str) -> None:
    text, told = FILES[case]
    write("bad.py", text)
    code, out, err = run("bad.py")
    assert (code, out) == (2, "")
    assert told in err and "Traceback" not in err


def test_a_target_that_is_neither_file_nor_module_is_told_the_forms(run: Run) -> None:
    code, _, err = run("no target")
    assert code == 2
    assert "train.py:loader" in err and "Net" not in err
