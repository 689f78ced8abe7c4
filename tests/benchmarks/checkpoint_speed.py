"""What `ptools fix-ckpt` takes beside `cp` and beside the ways people fix a checkpoint today.

Run `python tests/benchmarks/checkpoint_speed.py [GIGABYTES [ROUNDS]]` (4 and 3 if not given) in a
folder on the disk to measure; it needs four times that space. timm and safetensors must be
installed. Each way is a fresh process, on a checkpoint of 100 tensors under `module.` tagged
cuda:1, in the page cache; the time ends when the output is on the disk. Each is followed by a `cp`
of the same file, and the ratio is the median of the ratios to it, so that a busy disk slows both.
Memory is the peak resident size of the process, mapped pages included.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from harness import show, show_versions

HERE = Path(__file__).resolve().parent
LOAD_AND_SAVE = """
import torch
checkpoint = torch.load("big.pt", map_location="cpu", weights_only=True{mmap})
torch.save({{name.removeprefix("module."): value for name, value in checkpoint.items()}}, "out.pt")
"""
TIMM = f"""
import sys, torch
sys.path.insert(0, {str(HERE)!r})
from harness import import_torchvision
import_torchvision()
from timm.models import load_state_dict
# as timm's clean_checkpoint.py does, which writes the format of before torch 1.6
torch.save(load_state_dict("big.pt", use_ema=False), "out.pt", _use_new_zipfile_serialization=False)
"""
SAFETENSORS = """
import torch
from safetensors.torch import save_file
tensors = torch.load("big.pt", map_location="cpu", weights_only=True)
del tensors["module.tied.weight"]  # it refuses tensors that share memory
save_file(tensors, "out.safetensors")
"""
DCP = """
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
dcp_to_torch_save("dcp", "out.pt")
"""
PTOOLS = (sys.executable, "-m", "ptools", "fix-ckpt")
WAYS = {
    "ptools, new file": (*PTOOLS, "big.pt", "-o", "out.pt"),
    "ptools, half of the tensors dropped": (*PTOOLS, "big.pt", "-o", "out.pt", "--drop", "*5*"),
    "ptools, to safetensors": (*PTOOLS, "big.pt", "-o", "out.safetensors"),
    "ptools, from a DCP folder": (*PTOOLS, "dcp", "-o", "out.pt"),
    "ptools, in place": (*PTOOLS, "copy.pt", "--inplace"),
    "ptools info": (*PTOOLS, "info", "big.pt"),
    "torch.load, torch.save": (sys.executable, "-c", LOAD_AND_SAVE.format(mmap="")),
    "the same with mmap=True": (sys.executable, "-c", LOAD_AND_SAVE.format(mmap=", mmap=True")),
    "timm's clean_checkpoint": (sys.executable, "-c", TIMM),
    "safetensors' save_file": (sys.executable, "-c", SAFETENSORS),
    "DCP's dcp_to_torch_save": (sys.executable, "-c", DCP),
    "import torch alone": (sys.executable, "-c", "import torch"),
}
OUTPUTS = ("out.pt", "out.safetensors", "copy.pt")


class Run(NamedTuple):
    seconds: float
    peak_bytes: int
    code: int


def make(gigabytes: float) -> None:
    """A DDP checkpoint of 100 tensors, one of them tied, and the same as a DCP folder."""
    import torch
    from torch.distributed.checkpoint import save

    numel = int(gigabytes * 1e9 / 100 / 4)
    state = {f"module.layer{index}.weight": torch.randn(numel) for index in range(100)}
    state["module.tied.weight"] = state["module.layer1.weight"]
    with mock.patch.object(torch.serialization, "location_tag", lambda storage: "cuda:1"):
        torch.save(state, "big.pt")
    save(state, checkpoint_id="dcp", no_dist=True)


def measured(command: tuple[str, ...]) -> Run:
    """Run it until what it wrote is on the disk."""
    for output in OUTPUTS[:2]:
        Path(output).unlink(missing_ok=True)
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    seconds = time.perf_counter() - start
    return Run(seconds, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status))


def rounds_of(command: tuple[str, ...], rounds: int) -> list[tuple[Run, Run]]:
    """Each run with the `cp` after it."""
    pairs = []
    for _ in range(rounds):
        if "copy.pt" in command:
            shutil.copy("big.pt", "copy.pt")
        run = measured(command)
        pairs.append((run, measured(("cp", "big.pt", "out.pt"))))
    return pairs


def row(name: str, pairs: list[tuple[Run, Run]]) -> list[str]:
    if any(run.code for run, _ in pairs):
        return [name, "failed", "", ""]
    seconds = statistics.median(run.seconds for run, _ in pairs)
    ratio = statistics.median(run.seconds / copy.seconds for run, copy in pairs)
    peak = max(run.peak_bytes for run, _ in pairs)
    return [name, f"{seconds:.2f}", f"{ratio:.2f}", f"{peak / 1e6:,.0f}"]


def main(gigabytes: float = 4, rounds: float = 3) -> None:
    show_versions("ptools", "timm", "safetensors")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.chdir(folder)
        # In a process of its own: a child's peak size starts at its parent's.
        subprocess.run(
            [sys.executable, str(HERE / "checkpoint_speed.py"), "make", str(gigabytes)], check=True
        )
        rows = [row(name, rounds_of(command, int(rounds))) for name, command in WAYS.items()]
        os.chdir("..")
    show(f"{gigabytes:g} GB", ["", "seconds", "times cp", "peak MB"], rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(float(sys.argv[2]))
    else:
        main(*map(float, sys.argv[1:]))
