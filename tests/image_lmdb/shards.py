"""Shards of made-up images, which no folder could hold."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ptools.image_lmdb.batch import Batch
from ptools.image_lmdb.writer import End, finish, place, write_batch


def write_shard(
    path: Path, images: Iterable[tuple[bytes, str, int]], classes: Sequence[str]
) -> Path:
    """Write images, each with its path and label, as the packer does."""
    batch, end = Batch(), End()
    for data, name, label in images:
        batch.add(data, name, label)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        rows = write_batch(descriptor, batch, place(batch, end))
        finish(path, descriptor, end, rows, classes)
    finally:
        os.close(descriptor)
    return path
