"""Fill a shard with the images of its blocks: each is read, then placed when it is its turn."""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ptools.errors import PtoolsError
from ptools.image_lmdb.ahead import read_ahead
from ptools.image_lmdb.batch import Batch, Tally
from ptools.image_lmdb.plan import Plan
from ptools.image_lmdb.turns import Turns
from ptools.image_lmdb.writer import End, Rows, place, write_batch

_KEPT = 16 << 20  # bytes of freed memory
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt

Filled = tuple[Rows, Tally]  # of a block
Placed = Callable[[End], None]


def fill(plan: Plan, index: int, descriptor: int, turns: Turns, placed: Placed) -> Iterator[Filled]:
    """Write those blocks of a shard that are this process's to the open file.

    `placed` is told of the shard's end behind each block.

    Raises:
        PtoolsError: a file is bad and the plan says `on_error="fail"`, or a process is gone.
    """
    _keep_freed_memory()
    folder = _open_folder(plan.source)
    batch, number = Batch(), turns.member
    try:
        blocks = plan.blocks(index, turns.member, turns.members)
        for _ in read_ahead(folder, blocks, lambda block: batch.load(folder, block, plan.options)):
            end = turns.wait(number)
            if batch.failure is not None:
                raise PtoolsError(
                    f"{plan.source / batch.failure.path}: {batch.failure.reason}",
                    hint="mend or remove it, or pass --on-error skip",
                )
            at = place(batch, end)
            turns.pass_on(number)
            yield write_batch(descriptor, batch, at), batch.tally
            placed(end)
            number += turns.members
    finally:
        os.close(folder)


def merged(blocks: Iterable[Filled]) -> Filled:
    """What is known of some blocks, in one."""
    rows, tally = Rows(), Tally()
    for more, counts in blocks:
        rows.add(more)
        tally.add(counts)
    return rows, tally


def _open_folder(root: Path) -> int:
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise PtoolsError(
            f"cannot read {root}: {error.strerror}", hint="bring it back and run the command again"
        ) from error


def _keep_freed_memory() -> None:
    """Have glibc keep what one image took for the next: decoding is half page faults without.

    Elsewhere than on glibc there is no such call, and nothing happens.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT)
