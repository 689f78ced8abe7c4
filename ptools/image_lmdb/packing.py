"""Pack one shard of a plan: the same plan and index always give the same bytes."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from ptools.cores import usable_cores
from ptools.image_lmdb.crew import fill_together
from ptools.image_lmdb.filling import fill, merged
from ptools.image_lmdb.plan import Options, Part, Plan
from ptools.image_lmdb.report import ShardReport
from ptools.image_lmdb.store import Store, writing
from ptools.image_lmdb.turns import Turns
from ptools.image_lmdb.writer import End, finish

Advance = Callable[[int, int], None]  # told how many images and bytes of the source are done

# What is worth another process, which takes 0.1 s to start.
_FILES_EACH, _BYTES_EACH, _DECODED_BYTES_EACH = 20_000, 2 << 30, 64 << 20


def pack_shard(
    plan: Plan, index: int, store: Store, advance: Advance | None = None, jobs: int | None = None
) -> ShardReport:
    """Pack shard `index` of a plan into a store, unless it is already there.

    Depends on nothing but the plan and the files it names, so any process on any machine may do it,
    again if need be. It is filled by `jobs` processes, or as many as are worth it.

    Raises:
        PtoolsError: a file is bad and the plan says `on_error="fail"`, or the disk is full.
    """
    if (done := finished(plan, index, store)) is not None:
        return done
    name = plan.shard_name(index)
    # A name of its own: what a killed run may still be writing to is not touched.
    temporary = store.workspace / f".{name}.{os.urandom(4).hex()}.part"
    with writing(store):
        try:
            report = _write(plan, index, store, temporary, jobs, advance or _ignore)
            store.remove(f"{name}.done")  # it tells of what `put` replaces
            store.put(name, temporary)
        finally:
            temporary.unlink(missing_ok=True)
        store.write(f"{name}.done", json.dumps(report.to_dict()).encode())
    return report


def finished(plan: Plan, index: int, store: Store) -> ShardReport | None:
    """The report of a shard that an earlier run finished from the same files."""
    name = plan.shard_name(index)
    text = store.read(f"{name}.done")
    if text is None:
        return None
    try:
        report = ShardReport.from_dict(json.loads(text))
    except (ValueError, TypeError, KeyError):  # cut short, or of another version
        return None
    same = report.digest == plan.parts[index].digest and report.file_bytes == store.size(name)
    return report if same else None


def _ignore(images: int, source_bytes: int) -> None: ...


def _write(
    plan: Plan, index: int, store: Store, file: Path, jobs: int | None, advance: Advance
) -> ShardReport:
    part = plan.parts[index]
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    files = nbytes = 0

    def placed(end: End) -> None:
        nonlocal files, nbytes
        advance(end.files - files, end.file_bytes - nbytes)
        files, nbytes = end.files, end.file_bytes

    try:
        members = min(jobs or _worth(part, plan.options), part.blocks)
        if members == 1:
            turns = Turns(part.blocks)
            rows, tally = merged(fill(plan, index, descriptor, turns, placed))
            end = turns.end
        else:
            end, (rows, tally) = fill_together(
                plan, index, store, file, descriptor, members, placed
            )
            placed(end)
        size = finish(file, descriptor, end, rows, plan.classes)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return ShardReport(
        plan.shard_name(index),
        part.digest,
        end.images,
        end.image_bytes,
        tally.source_bytes,
        size,
        tally.clipped_grey,
        tuple(tally.skipped),
        tuple(tally.kept),
    )


def _worth(part: Part, options: Options) -> int:
    """How many processes a shard is worth."""
    decodes = options.check == "decode" or options.recode is not None
    bytes_each = _DECODED_BYTES_EACH if decodes else _BYTES_EACH
    worth = 1 + part.images // _FILES_EACH + part.bytes // bytes_each
    return min(worth, usable_cores())
