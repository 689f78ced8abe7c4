"""The script that `ptools init` writes: it trains, and goes on after kill -9.

The template is a module, which is run in this process where that will do.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ptools.train import template

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPES = str(EXAMPLES / "shapes")
CPU = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
RUNS = ("cut", "whole")
LAUNCH = ("ptools", "launch", "--gpus", "cpu", "-n", "2")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in the processes below: other numbers of threads round otherwise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(capsys: Capture, **changes: object) -> list[str]:
    """What it prints."""
    settings = {"data": SHAPES, "epochs": 2, "batch_size": 8, "lr": 0.05, "amp": None}
    template.main(argparse.Namespace(**{**settings, "resume": False, **changes}))
    return capsys.readouterr().out.splitlines()


def typed(*words: str) -> list[str]:
    """What a person sees who types it."""
    call = [sys.executable, "-m", *words]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, env=CPU)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_it_can_be_read_in_a_few_minutes() -> None:
    lines = Path(template.__file__).read_text().splitlines()
    assert len([line for line in lines if line]) <= 100


def test_an_lmdb_gives_the_losses_of_its_folder(folder: Path, capsys: Capture) -> None:
    lines = trained(capsys, data=str(EXAMPLES / "shapes.lmdb"), epochs=1)
    assert lines == trained(capsys, epochs=1)
    assert lines[0].startswith("epoch 0: loss 1.")


def test_it_trains_in_bf16(folder: Path, capsys: Capture) -> None:
    loss, half = (trained(capsys, amp=amp)[0].split()[3] for amp in ("no", "bf16"))
    assert loss != half
    assert float(half.strip(",")) == pytest.approx(float(loss.strip(",")), rel=0.02)


def test_after_kill_9_it_goes_on_bit_for_bit(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.copy(template.__file__, "cut.py")
    call = [sys.executable, "cut.py", "--data", SHAPES, "--epochs", "4"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env=CPU) as process:
        assert process.stdout
        printed = [process.stdout.readline().strip() for _ in range(2)]
        process.kill()
    monkeypatch.setattr(template, "OUT", Path("runs/cut"))
    resumed = trained(capsys, epochs=4, resume=True)
    monkeypatch.setattr(template, "OUT", Path("runs/whole"))
    whole = trained(capsys, epochs=4)
    assert len(whole) == 4
    assert 1 <= len(resumed) <= 3  # as many checkpoints were written before it was killed
    assert printed == whole[:2]
    assert resumed == whole[-len(resumed) :]
    cut, full = (torch.load(f"runs/{name}/last.ckpt", weights_only=True) for name in RUNS)
    for name, weight in full["parts"]["model"].items():
        assert torch.equal(cut["parts"]["model"][name], weight), name

    for name in RUNS:
        events = EventAccumulator(f"runs/{name}").Reload()
        for curve in ("loss", "accuracy", "lr"):
            assert [point.step for point in events.Scalars(curve)] == [0, 1, 2, 3]


def test_two_processes_train_one_model(folder: Path) -> None:
    shutil.copy(template.__file__, "train.py")
    (line,) = typed(*LAUNCH, "train.py", "--data", SHAPES, "--epochs", "1")
    assert line.startswith("epoch 0: loss 1.")


@pytest.mark.slow
def test_torchrun_gives_the_losses_of_ptools_launch_and_so_does_resuming(folder: Path) -> None:
    shutil.copy(template.__file__, "train.py")
    words = ["train.py", "--data", SHAPES, "--epochs", "5"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    whole = typed(*torchrun, *words)
    assert len(whole) == 5
    call = [sys.executable, "-m", *LAUNCH, *words]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env=CPU) as process:
        assert process.stdout
        assert [process.stdout.readline().strip() for _ in range(2)] == whole[:2]
        process.kill()
    resumed = typed(*LAUNCH, *words, "--resume")
    assert resumed == whole[-len(resumed) :]


@pytest.mark.slow
def test_it_finds_the_class_of_95_percent_of_the_held_out_images(
    folder: Path, capsys: Capture
) -> None:
    """All 6 of 24, in 60 epochs."""
    last = trained(capsys, epochs=60)[-1]
    assert float(last.split("accuracy ")[1].split("%")[0]) >= 95
