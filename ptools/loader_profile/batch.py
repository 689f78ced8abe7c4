"""What a batch weighs, and the shared memory that the batches in flight need."""

import os
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from ptools.errors import PtoolsError
from ptools.files import human_bytes
from ptools.loader_profile import steady
from ptools.loader_profile.rebuild import rebuilt
from ptools.loader_profile.report import Batch, Settings

_SHM = Path("/dev/shm")


def first_batch(loader: DataLoader[Any], settings: Settings, drawn: Settings) -> Batch:
    """The first batch, drawn with other settings than those whose needs it tells.

    Raises:
        PtoolsError: there is none.
    """
    for batch in rebuilt(loader, drawn):
        tensors = list(steady.tensors_in(batch))
        size = sum(one.nbytes for one in tensors)
        return Batch(
            samples=int(steady.samples_in(batch, settings.batch_size)),
            tensors=len(tensors),
            bytes=size,
            shared_bytes=_in_flight(settings, size),
            shm_free=_free(),
        )
    raise PtoolsError("the loader gives no batch", hint="is its dataset empty?")


def check(batch: Batch, settings: Settings) -> None:
    """See that the batches in flight fit into the shared memory.

    Raises:
        PtoolsError: they do not.
    """
    if batch.shm_free is not None and batch.shared_bytes > batch.shm_free:
        raise PtoolsError(
            f"{settings.num_workers} workers need {human_bytes(batch.shared_bytes)} of shared "
            f"memory for their batches, and {_SHM} has {human_bytes(batch.shm_free)}",
            hint=f"num_workers={most_workers(batch, settings)} fits; a container gets more by "
            "docker run --shm-size",
        )


def most_workers(batch: Batch, settings: Settings) -> int | None:
    """The most workers whose batches fit into the shared memory; None if nothing limits them."""
    if batch.shm_free is None or not batch.bytes:
        return None
    return max(0, int((batch.shm_free / batch.bytes - 1) // (settings.prefetch_factor or 2)))


def _in_flight(settings: Settings, size: int) -> int:
    """Bytes: all that is prefetched, and the batch that is being consumed."""
    if not settings.num_workers:
        return 0
    return (settings.num_workers * (settings.prefetch_factor or 2) + 1) * size


def _free() -> int | None:
    if not _SHM.is_dir():
        return None
    status = os.statvfs(_SHM)
    return status.f_bavail * status.f_frsize
