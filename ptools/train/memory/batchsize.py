"""How large a batch a device has memory for, and giving back what its allocator keeps."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ptools.console import counted
from ptools.errors import PtoolsError, UsageError
from ptools.files import human_bytes

_TOLD = (
    "out of memory",  # CUDA, MPS, XPU, also from within a library
    "can't allocate memory",  # the CPU's allocator
    "not enough memory",  # the same on Windows
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True)
class Freed:
    """What `empty_cache` gave back.

    Args:
        objects: those that kept each other alive.
        bytes: that the driver has again, by device; a CPU's allocator keeps none.
    """

    objects: int
    bytes: dict[str, int]

    def __str__(self) -> str:
        parts = [f"{human_bytes(count)} on {device}" for device, count in self.bytes.items()]
        return ", ".join([*parts, f"{counted(self.objects, 'object')} collected"])


def empty_cache() -> Freed:
    """Collect garbage, and give the memory that GPUs' allocators keep free back to the driver.

    It helps another process, or a pool that is in pieces. A training itself gains nothing, and
    has to wait for the GPU.
    """
    objects = gc.collect()
    before = _reserved()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    after = _reserved()
    return Freed(objects, {device: count - after[device] for device, count in before.items()})


def find_batch_size(
    step: Callable[[int], object], start: int = 1, limit: int = 65536, margin: float = 0.1
) -> int:
    """The largest batch size for which a training step does not run out of memory.

    It doubles from `start` until a step fails, and bisects then. Each size is tried twice: the
    second step finds the optimizer's state there. The steps are real: use a model that you make
    anew, or load again. Linux rather kills a process than to refuse it memory on a CPU; there
    `resource.setrlimit(resource.RLIMIT_AS, ...)` has to refuse before.

    Args:
        step: makes a batch of so many samples, and trains on it: forward, backward, optimizer.
        limit: the largest size to try.
        margin: the part that is taken off the largest size, for longer sentences and a pool in
            pieces; nothing is taken off `limit`.

    Raises:
        PtoolsError: there is no memory for one sample.
        UsageError: start, limit or margin make no sense.

    Example:
        >>> find_batch_size(lambda size: train_on(torch.randn(size, 3, 224, 224, device="cuda")))
        230
    """
    if not 1 <= start <= limit or not 0 <= margin < 1:
        raise UsageError(
            f"start={start}, limit={limit}, margin={margin}",
            hint="1 <= start <= limit, and 0 <= margin < 1",
        )
    fits, fails = 0, limit + 1
    size = start
    while fails - fits > 1:
        if _fits(step, size):
            fits = size
        else:
            fails = size
        size = min(2 * size, limit) if fails > limit else (fits + fails) // 2
    if not fits:
        raise PtoolsError(
            "there is no memory for a batch of 1",
            hint="bf16, checkpoint_modules, or a smaller model; memory_report() tells what is held",
        )
    return fits if fits == limit else max(1, int(fits * (1 - margin)))


def _fits(step: Callable[[int], object], size: int) -> bool:
    fits = True
    try:
        step(size)
        step(size)
    except (RuntimeError, MemoryError) as error:
        told = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not told and not any(text in str(error) for text in _TOLD):
            raise
        fits = False
    empty_cache()  # only now: the error has held all that the step had made
    return fits


def _reserved() -> dict[str, int]:
    """Bytes that each GPU's allocator has taken from the driver."""
    found: dict[str, int] = {}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        found |= {f"cuda:{device}": torch.cuda.memory_reserved(device) for device in devices}
    if torch.backends.mps.is_available():
        found["mps"] = torch.mps.driver_allocated_memory()
    return found
