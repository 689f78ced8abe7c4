"""Checkpoints to and from a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ptools.checkpoint import fix_ckpt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LOAD = """
import sys, torch
assert not torch.cuda.is_available()
print(torch.load(sys.argv[1], weights_only=True)["weight"].sum().item())
"""


def test_what_a_gpu_saved_loads_where_there_is_none(tmp_path: Path) -> None:
    model = nn.DataParallel(nn.Linear(4, 3).cuda())
    torch.save(model.state_dict(), path := tmp_path / "net.pt")
    (output,) = fix_ckpt(path).outputs
    done = subprocess.run(
        [sys.executable, "-c", LOAD, output],
        env={"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(model.module.weight.sum().item())


def test_a_file_for_the_gpu_loads_onto_it(tmp_path: Path) -> None:
    torch.save(nn.Linear(4, 3).state_dict(), path := tmp_path / "net.pt")
    (output,) = fix_ckpt(path, to="cuda:0").outputs
    assert torch.load(output, weights_only=True)["weight"].device == torch.device("cuda", 0)
