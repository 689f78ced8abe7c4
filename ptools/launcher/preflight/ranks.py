"""What each process of a preflight runs: `python -m ptools.launcher.preflight.ranks SECONDS`.

It writes down each check when it is done, and the one that it is at: a process that hangs or dies
has then said where.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ptools.launcher.wire import FOLDER, write

KIND = "preflight"
_SIZES = tuple(1 << power for power in (12, 16, 20, 24))  # bytes
_SIZES_ON_GPUS = (*_SIZES, 1 << 28)
_REPEATS = 5

Detail = str | None  # what is wrong


def main() -> None:
    """Run all checks, and say of each how it went."""
    _print_to_a_file()
    rank, timeout = int(os.environ["RANK"]), float(sys.argv[1])
    facts = _versions() | {"results": {}, "names": ["process group", *CHECKS, "bandwidth", "end"]}

    def at(name: str | None) -> None:
        facts["running"] = name
        write(KIND, rank, facts)

    at("process group")
    device = _form_a_group(timeout)
    facts["results"]["process group"] = None
    facts["backend"] = dist.get_backend()
    for name, check in CHECKS.items():
        at(name)
        facts["results"][name] = check(device)
    at("bandwidth")
    facts["bandwidth"] = bandwidth(device)
    facts["results"]["bandwidth"] = None
    at("end")
    dist.destroy_process_group()
    facts["results"]["end"] = None
    at(None)


def _print_to_a_file() -> None:
    """Gloo and NCCL print when they start, which is no part of the report."""
    file = Path(os.environ[FOLDER], f"printed_{os.environ['RANK']}.txt").open("wb")  # noqa: SIM115
    for number in (1, 2):
        os.dup2(file.fileno(), number)


def _versions() -> dict[str, Any]:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    nccl = dist.is_available() and dist.is_nccl_available() and gpus > 0
    properties = [torch.cuda.get_device_properties(number) for number in range(gpus)]
    return {
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if nccl else None,
        "gpus": [f"{one.name}, {one.total_memory >> 30} GiB" for one in properties],
    }


def _form_a_group(timeout: float) -> torch.device:
    """NCCL with a GPU for each process, else gloo."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device("cpu")
    if gpus:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % gpus)
        torch.cuda.set_device(device)
    backend = "nccl" if gpus >= int(os.environ["LOCAL_WORLD_SIZE"]) else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    return device


def reduce_integers(device: torch.device) -> Detail:
    """The sum over ranks r of 0, 1, 2, ... + r."""
    numbers = torch.arange(1000, device=device)
    n = dist.get_world_size()
    found = numbers + dist.get_rank()
    dist.all_reduce(found)
    return _differs(found, numbers * n + n * (n - 1) // 2)


def reduce_floats(device: torch.device) -> Detail:
    """The sum over ranks r of multiples of (r + 1) / 4, which floats hold exactly."""
    numbers = torch.arange(1000, device=device, dtype=torch.float32) / 4
    n = dist.get_world_size()
    found = numbers * (dist.get_rank() + 1)
    dist.all_reduce(found)
    return _differs(found, numbers * (n * (n + 1) // 2))


def broadcast(device: torch.device) -> Detail:
    """From each rank in turn."""
    for source in range(dist.get_world_size()):
        found = torch.full((1000,), dist.get_rank(), device=device)
        dist.broadcast(found, source)
        wrong = _differs(found, torch.full((1000,), source, device=device))
        if wrong is not None:
            return f"from rank {source}: {wrong}"
    return None


def barrier(device: torch.device) -> Detail:
    """Nobody leaves before the last one, which comes late, has entered."""
    time.sleep(0.05 * (dist.get_rank() == dist.get_world_size() - 1))
    # One clock for all: they run on one machine.
    entered = torch.tensor([time.monotonic_ns()], device=device)
    dist.barrier()
    left = time.monotonic_ns()
    dist.all_reduce(entered, dist.ReduceOp.MAX)
    early = (int(entered) - left) / 1e6
    return f"left {early:.1f} ms before the last process had entered" if early > 0 else None


def ddp_step(device: torch.device) -> Detail:
    """A step on a share of the batch each is the step of one process on the whole."""
    rank, n = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8 * n, 16, generator=generator).to(device)
    y = torch.randn(8 * n, 1, generator=generator).to(device)
    alone, together = _model().to(device), _model().to(device)
    _step(alone, alone, x, y)
    wrapped = nn.parallel.DistributedDataParallel(together)
    _step(wrapped, together, x[8 * rank : 8 * (rank + 1)], y[8 * rank : 8 * (rank + 1)])
    for (name, expected), found in zip(
        alone.named_parameters(), together.parameters(), strict=True
    ):
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
            return f"{name} differs by {(found - expected).abs().max().item():.2g}"
    return None


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))


def _step(model: nn.Module, owner: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.SGD(owner.parameters(), lr=0.1)
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()


def _differs(found: torch.Tensor, expected: torch.Tensor) -> Detail:
    wrong = (found != expected).nonzero()
    if not len(wrong):
        return None
    first = int(wrong[0])
    return (
        f"expected {expected[first].item()}, got {found[first].item()} "
        f"({len(wrong)} of {len(found)} values are wrong)"
    )


def bandwidth(device: torch.device) -> list[tuple[int, float]]:
    """Sizes in bytes, and the seconds of an all_reduce on the slowest rank."""
    if dist.get_world_size() == 1:
        return []
    sizes = _SIZES_ON_GPUS if device.type == "cuda" else _SIZES
    return [(size, _seconds(torch.zeros(size // 4, device=device))) for size in sizes]


def _seconds(message: torch.Tensor) -> float:
    times = []
    for _ in range(1 + _REPEATS):
        _finish(message)
        start = time.perf_counter()
        dist.all_reduce(message)
        _finish(message)
        times.append(time.perf_counter() - start)
    slowest = torch.tensor([statistics.median(times[1:])], device=message.device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return slowest.item()


def _finish(message: torch.Tensor) -> None:
    if message.is_cuda:
        torch.cuda.synchronize()


CHECKS: dict[str, Callable[[torch.device], Detail]] = {
    "all_reduce of integers": reduce_integers,
    "all_reduce of floats": reduce_floats,
    "broadcast": broadcast,
    "barrier": barrier,
    "DDP step": ddp_step,
}

if __name__ == "__main__":
    main()
