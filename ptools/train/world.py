"""Which process of a job this is, and its process group."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import distributed

from ptools.errors import UsageError
from ptools.slurm import from_slurm

_left: list[object] = []  # groups


@dataclass(frozen=True)
class World:
    """This process among those of its job, and the device it computes on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether it is the process that prints and saves."""
        return self.rank == 0


def find_world(device: str | torch.device | None = None) -> World:
    """The world as `ptools launch`, torchrun or SLURM have set it out; else this process alone.

    Args:
        device: by default this process's GPU, or the CPU where there is none.

    Raises:
        UsageError: there is no such GPU.
    """
    variables = _translated(os.environ)
    rank, size = int(variables.get("RANK", "0")), int(variables.get("WORLD_SIZE", "1"))
    local_rank = int(variables.get("LOCAL_RANK", "0"))
    if device is None:
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"there is no {device} here", hint='device="cpu", or none to choose itself'
        )
    return World(rank, size, local_rank, device)


def join(world: World) -> bool:
    """Make the process's device the current one, and join the others; whether that was needed.

    A group that the program has made itself is taken as it is.
    """
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if world.size == 1 or distributed.is_initialized():
        return False
    for name, value in _translated(os.environ).items():
        os.environ.setdefault(name, value)
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, rank=world.rank, world_size=world.size)
    return True


def leave() -> None:
    """Leave the group that `join` has made, once all is done."""
    # Its object stays: freed together with a DDP model, it would wait for a thread of gloo, and
    # that thread for the interpreter's lock, which who frees the model holds.
    _left.append(distributed.group.WORLD)
    distributed.destroy_process_group()


def _translated(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, in torchrun's terms where SLURM has started each process itself."""
    found = dict(environ)
    step = None if "RANK" in environ else from_slurm(environ)
    if step is not None:
        found |= {
            "RANK": environ["SLURM_PROCID"],
            "WORLD_SIZE": str(step.nodes * (step.procs_per_node or 1)),
            "LOCAL_RANK": environ["SLURM_LOCALID"],
            "MASTER_ADDR": step.master,
            "MASTER_PORT": str(step.port),
        }
    return found
