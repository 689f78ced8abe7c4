"""Unmodified scripts train to the same losses as under torchrun."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

TRAINING = """
import torch
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
inputs = torch.randn(64, 8)
data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
"""
LOOP = """
for epoch in range(2):
    for batch, target in loader:
        loss = torch.nn.functional.mse_loss(model(batch), target)
        optimizer.zero_grad()
        {backward}
        optimizer.step()
    with open(f"losses_{{rank}}", "a") as file:  # what two processes print may run together
        print("procs", procs, "loss", loss.item(), file=file)
"""
DDP = f"""
import os
import torch.distributed as dist
from torch.utils.data import DistributedSampler
{TRAINING}
dist.init_process_group()
rank, procs = dist.get_rank(), dist.get_world_size()
model = torch.nn.parallel.DistributedDataParallel(model)
loader = DataLoader(data, batch_size=8, sampler=DistributedSampler(data, shuffle=False))
{LOOP.format(backward="loss.backward()")}
dist.destroy_process_group()
"""
ACCELERATE = f"""
from accelerate import Accelerator
{TRAINING}
accelerator = Accelerator()
rank, procs = accelerator.process_index, accelerator.num_processes
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=8))
{LOOP.format(backward="accelerator.backward(loss)")}
accelerator.end_training()
"""
FABRIC = """
from {package} import Fabric
{training}
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
rank, procs = fabric.global_rank, fabric.world_size
model, optimizer = fabric.setup(model, optimizer)
loader = fabric.setup_dataloaders(DataLoader(data, batch_size=8))
{loop}
"""


def losses(script: Path, launcher: str, **more: str) -> list[str]:
    """What both processes write."""
    done = subprocess.run(
        [sys.executable, "-m", *launcher.split(), str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **more},
    )
    # Under torchrun a program that ended well may abort on its way out: pytorch/pull/179291.
    aborted = launcher.startswith("torch") and "(exitcode: -6)" in done.stderr
    assert done.returncode == 0 or aborted, done.stderr
    files = [script.with_name(f"losses_{rank}") for rank in range(2)]
    found = [line for file in files for line in file.read_text().splitlines()]
    for file in files:
        file.unlink()
    return found


def check(script: Path) -> None:
    ours = losses(script, "ptools launch --gpus cpu -n 2")
    assert [line.partition(" loss")[0] for line in ours] == ["procs 2"] * 4
    theirs = "torch.distributed.run --standalone --nproc-per-node 2"
    # Without the variable Accelerate trains two models of one process each.
    assert ours == losses(script, theirs, ACCELERATE_USE_CPU="true")


def test_raw_ddp(write: Callable[[str, str], Path]) -> None:
    check(write("train.py", DDP))


def test_accelerate(write: Callable[[str, str], Path]) -> None:
    pytest.importorskip("accelerate")
    check(write("train.py", ACCELERATE))


def test_fabric(write: Callable[[str, str], Path]) -> None:
    package = "lightning_fabric"
    pytest.importorskip(package)
    loop = LOOP.format(backward="fabric.backward(loss)")
    check(write("train.py", FABRIC.format(package=package, training=TRAINING, loop=loop)))
