"""`ptools launch --repro`: real processes, each compared with its twin and with the others."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ptools.cli import main
from ptools.cli.launch_again import Launches
from ptools.repro.engine import repro_script
from ptools.repro.report import ReproReport

Write = Callable[[str, str], Path]
TRAIN = """
import os, sys
import torch
import torch.distributed as dist

torch.set_num_threads(1)
case, last = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
net = torch.nn.Linear(4, 1)
ddp = torch.nn.parallel.DistributedDataParallel(net)
optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
torch.manual_seed(rank)
try:
    for step in range(last + 1):
        x = torch.randn(8, 4)
        if case == "drawn" and rank == 1 and step == last:
            x[0, 0] = int.from_bytes(os.urandom(2))  # drawn
        if case == "crash" and rank == 1 and step == last:
            raise ValueError("bad label")
        loss = ddp(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if case == "extra" and rank == 1 and step == last - 1:
            optimizer.step()  # extra
        if case == "drawn" and rank == 0:
            with torch.no_grad():
                net(x)
finally:
    dist.destroy_process_group()
"""
LINES = TRAIN.splitlines()


def run_twice(*words: str) -> tuple[ReproReport, Launches]:
    """What two launches come to that are perturbed in nothing."""
    launches = Launches("ptools.repro.child", {"gpus": "cpu", "procs": 2, "grace": 5.0})
    return repro_script(words[0], words[1:], perturb=(), runner=launches), launches


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    """What a person sees who types it."""
    call = [sys.executable, "-m", "ptools", "launch", "--gpus", "cpu", "-n", "2", *words]
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(call, capture_output=True, text=True, timeout=300, env=environment)


def marked(word: str) -> int:
    return next(number for number, line in enumerate(LINES, 1) if line.endswith(f"# {word}"))


def test_the_line_of_the_rank_that_drew_is_named_and_not_the_rank_that_followed(
    write: Write,
) -> None:
    write("train.py", TRAIN)
    report, _ = run_twice("train.py", "drawn", "1")
    found = report.verdict
    assert found is not None
    assert found.where is not None
    assert (found.rank, found.where.line, found.step) == (1, marked("drawn"), 1)
    assert report.to_dict()["verdict"]["rank"] == 1
    assert (report.ranks, report.exit_code, len(report.runs)) == (2, 3, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--debug", "train.py"], "without --debug"),
        (["--restarts", "1", "train.py"], "on one machine"),
        (["nowhere.py"], "there is no script nowhere.py"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    words: list[str], message: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("train.py", "")
    assert main(["launch", "--gpus", "cpu", "-n", "2", "--repro", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_late_draw_is_found_though_rank_0_does_more_than_rank_1(write: Write) -> None:
    write("train.py", TRAIN)
    report, _ = run_twice("train.py", "drawn", "12")
    found = report.verdict
    assert found is not None
    assert found.where is not None
    assert (found.rank, found.where.line, found.step) == (1, marked("drawn"), 12)


@pytest.mark.slow
def test_ranks_that_repeat_themselves_and_do_not_agree_are_a_finding(write: Write) -> None:
    write("train.py", TRAIN)
    done = typed("--repro", "train.py", "extra", "3")
    assert done.returncode == 3, done.stderr
    verdict = done.stdout.splitlines()[-1]
    assert verdict.startswith("ranks 0 and 1 hold other parameters after 4 steps: Linear.")
    assert "rank 0 made 4 steps in all, rank 1 made 5" in done.stdout


@pytest.mark.slow
def test_a_clean_job_is_identical_and_keeps_its_exit_code(write: Write) -> None:
    write("train.py", TRAIN)
    done = typed("--repro", "--seed", "3", "train.py", "clean", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("identical: 3 steps")


@pytest.mark.slow
def test_a_rank_that_fails_in_both_runs_is_told_as_launch_tells_it(write: Write) -> None:
    write("train.py", TRAIN)
    done = typed("--repro", "train.py", "crash", "1")
    assert done.returncode == 1
    assert "first failure: rank 1: ValueError: bad label" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("identical")
