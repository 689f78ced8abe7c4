"""The options of `ptools profile-loader` that no measurement can follow."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ptools import loader_profile
from ptools.cli import main

Write = Callable[[str, str], Path]

TRAIN = """
from torch.utils.data import DataLoader

class Squares: ...

loader = DataLoader([0, 1, 4, 9])
"""
BAD = {
    "a range that goes down": (["--workers", "4-2"], "0-8"),
    "no numbers": (["--workers", "a-b"], "0-8"),
    "a number below zero": (["--workers=-1"], "0-8"),
    "nothing between commas": (["--workers", "1,,2"], "0-8"),
    "more workers than there can be": (["--workers", "0-999999999"], "0-8"),
    "a batch of nothing": (["--batch-sizes", "0,64"], "64,128"),
    "no batch sizes": (["--batch-sizes", "64;128"], "64,128"),
    "no budget": (["--budget", "0"], "--budget 50"),
    "a budget below zero": (["--budget", "-3"], "--budget 50"),
    "a budget without end": (["--budget", "inf"], "--budget 50"),
    "a step of nothing": (["--step-ms", "0"], "--step-ms 50"),
    "a rate that is no number": (["--min-rate", "nan"], "--min-rate 50"),
    "two steps": (["--step-ms", "5", "--model", "net.py"], "one of them"),
    "a model that is none": (["--model", "train.py:Squares"], "model.py:Net"),
    "a trace that exists": (["--trace", "train.py"], "--force"),
    "a trace in no folder": (["--trace", "no/trace.json"], "mkdir"),
    "a file for TensorBoard": (["--tensorboard", "train.py"], "folder"),
    "a folder with a profile": (["--tensorboard", "runs"], "another folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_before_anything_is_measured(
    write: Write,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    monkeypatch.setitem(vars(loader_profile), "profile_loader", pytest.fail)
    write("train.py", TRAIN)
    (folder / "runs/measured").mkdir(parents=True)
    options, hint = BAD[case]
    code = main(["profile-loader", "train.py", *options])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    *_, error, hinted = err.strip().splitlines()
    assert error.startswith("error: ") and hinted.startswith("hint: ")
    assert hint in hinted
