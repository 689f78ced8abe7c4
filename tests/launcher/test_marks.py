"""What processes note of a program, and that the program cannot tell."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptools.launcher.engine import launch
from ptools.launcher.render import page

Write = Callable[[str, str], Path]

BEGIN = """\
import inspect, json, os, pickle, sys, traceback
from ptools.launcher import marks
marks.install()
assert "torch" not in sys.modules
"""
END = "print(json.dumps(marks.seen()))\n"


def noted(write: Write, program: str, **variables: str) -> dict[str, Any]:
    """What is noted of a program, which may assert for itself."""
    script = write("program.py", BEGIN + program + END)
    call = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(call, capture_output=True, text=True, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    notes: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return notes


def test_torch_stays_as_it_was_for_all_who_look(write: Write) -> None:
    notes = noted(
        write,
        """
import torch
from torch import distributed
from torch.distributed import init_process_group
from torch.distributed import distributed_c10d
from torch.utils.data.distributed import DistributedSampler
assert distributed.init_process_group is init_process_group
assert distributed_c10d.init_process_group is init_process_group
assert pickle.loads(pickle.dumps(init_process_group)) is init_process_group
assert list(inspect.signature(init_process_group).parameters)[:2] == ["backend", "init_method"]
assert "autocast" in torch.autocast.__enter__.__globals__
sampler = DistributedSampler(range(4), num_replicas=2, rank=0)
assert type(sampler) is DistributedSampler
assert pickle.loads(pickle.dumps(sampler)).__dict__ == sampler.__dict__
assert list(inspect.signature(torch.amp.GradScaler).parameters)[0] == "device"
assert not [file for file in map(str, sys.meta_path) if "marks" in file]
try:
    init_process_group("nonsense")
except Exception:
    text = traceback.format_exc()
assert "program.py" in text and "distributed_c10d.py" in text, text
assert "marks.py" not in text, text

@torch.jit.script
def scripted(x: torch.Tensor):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.mm(x, x)
assert scripted(torch.ones(2, 2)).dtype == torch.bfloat16

with torch.autocast("cpu", enabled=False):
    pass
""",
    )
    assert notes == {
        "torch": True,
        "group": False,
        "autocast": False,
        "scaler": False,
        "amp": None,
        "samplers": [],
    }


def test_what_a_program_uses_is_noted(write: Write) -> None:
    notes = noted(
        write,
        """
import torch
from torch.utils.data import DataLoader, DistributedSampler
def epochs(shuffle=True, set_epoch=False, kind=DistributedSampler):
    sampler = kind(range(8), num_replicas=2, rank=0, shuffle=shuffle)
    loader = DataLoader(range(8), 2, sampler=sampler)
    orders = []
    for epoch in range(3):
        if set_epoch:
            sampler.set_epoch(epoch)
        orders.append(torch.cat(list(loader)).tolist())
    return orders
class Own(DistributedSampler):
    __hash__ = None
same, different = epochs(), epochs(set_epoch=True)
assert same[0] == same[1] and different[0] != different[1]
epochs(shuffle=False)
epochs(kind=Own)
torch.amp.GradScaler("cpu")
@torch.autocast("cpu", dtype=torch.bfloat16)
def forward(x): return x @ x
assert forward(torch.ones(2, 2)).dtype == torch.bfloat16
""",
        PTOOLS_AMP="bf16",
    )
    assert (notes["autocast"], notes["scaler"]) == (True, True)
    assert notes["amp"] == "bf16"
    assert notes["samplers"] == [
        {"shuffle": True, "iterations": 3, "set_epoch": False},
        {"shuffle": True, "iterations": 3, "set_epoch": True},
        {"shuffle": False, "iterations": 3, "set_epoch": False},
    ]


def test_a_program_without_torch_pays_nothing(write: Write) -> None:
    assert noted(write, "os.environ['A'] = os.environ.get('B', 'c')\n")["torch"] is False


def test_looking_through_the_environment_is_no_use_of_amp(write: Write) -> None:
    """As tqdm does, which torch imports."""
    notes = noted(write, "import torch; dict(os.environ)\n", PTOOLS_AMP="bf16")
    assert (notes["amp"], notes["autocast"]) == ("bf16", False)


ALONE = """\
import os, torch
print(torch.ones(2) * int(os.environ["RANK"]))
"""
TOGETHER = """\
import time, torch, torch.distributed as dist
from torch.utils.data import DistributedSampler
dist.init_process_group("gloo")
sampler = DistributedSampler(range(8))
for epoch in range(2):
    total = torch.tensor(sum(sampler))
    dist.all_reduce(total)
assert total == 28
dist.destroy_process_group()
"""
FAILING = """\
import time, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
def label(index):
    raise ValueError(f"bad label {index}")
def train():
    try:
        if rank == 1:
            time.sleep(0.2)
            label(3)
        dist.all_reduce(torch.ones(1))
    finally:
        if rank == 1:
            dist.destroy_process_group()
            time.sleep(0.5)
train()
"""


@pytest.mark.parametrize(
    ("program", "warning"),
    [(ALONE, "no process group was ever formed"), (TOGETHER, "the same order in each of 2 epochs")],
)
def test_a_silent_mistake_in_two_real_processes_is_told_of(
    write: Write, folder: Path, program: str, warning: str
) -> None:
    found = launch(write("train.py", program), procs=2, gpus="cpu", logs=folder / "logs")
    assert found.exit_code == 0
    (said,) = found.warnings
    assert warning in said
    assert page(found) == f"warning: {said}\n"


def test_the_true_error_of_two_real_processes_is_named_with_its_line(
    write: Write, folder: Path
) -> None:
    found = launch(write("train.py", FAILING), procs=2, gpus="cpu", logs=folder / "logs")
    lines = page(found).splitlines()
    assert lines[:3] == [
        "first failure: rank 1: ValueError: bad label 3",
        "  at train.py:5 in label",
        '     raise ValueError(f"bad label {index}")',
    ]
    assert found.exit_code == 1
    assert "closed" in lines[3] or "all_reduce" in lines[3]
    assert 4 <= len(lines) <= 12
