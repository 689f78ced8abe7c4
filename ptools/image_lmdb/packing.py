"""Pack one shard of a plan: the same plan and index always give the same bytes."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import lmdb

from ptools.cores import usable_cores
from ptools.errors import PtoolsError
from ptools.files import free_space, human_bytes
from ptools.image_lmdb.ahead import Loaded, read_files
from ptools.image_lmdb.check import Check, is_clipped_grey, problem
from ptools.image_lmdb.plan import Plan
from ptools.image_lmdb.recode import NotRecoded, Recode, recoded
from ptools.image_lmdb.report import ShardReport, Skipped
from ptools.image_lmdb.store import Store, writing
from ptools.image_lmdb.writer import ShardWriter

Advance = Callable[[int, int], None]  # told how many images and bytes of the source are done


def pack_shard(plan: Plan, index: int, store: Store, advance: Advance | None = None) -> ShardReport:
    """Pack shard `index` of a plan into a store, unless it is already there.

    Depends on nothing but the plan and the files it names, so any process on any machine may do it,
    again if need be.

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
            report = _write(plan, index, temporary, advance or _ignore)
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


def _write(plan: Plan, index: int, path: Path, advance: Advance) -> ShardReport:
    file_bytes = plan.parts[index].file_bytes
    while True:
        try:
            return _write_once(plan, index, path, file_bytes, advance)
        except lmdb.MapFullError:  # files made anew can be larger than they were
            file_bytes *= 2
        except lmdb.Error as error:
            raise PtoolsError(
                # liblmdb takes a full disk for an input/output error, too.
                f"cannot write {path.parent}: {error}; {human_bytes(free_space(path))} are free",
                hint=f"free {human_bytes(file_bytes)} there and run the same command again: "
                "finished shards are kept",
            ) from error


def _write_once(
    plan: Plan, index: int, path: Path, file_bytes: int, advance: Advance
) -> ShardReport:
    part, policy = plan.parts[index], plan.options.on_error
    skipped, kept, clipped, source_bytes = [], [], 0, 0
    with ShardWriter(path, file_bytes) as writer:
        for image in _images(plan, index):
            entry = image.entry
            if image.problem is not None:
                bad = Skipped(entry.path, image.problem)
                if policy == "fail":
                    raise PtoolsError(
                        f"{plan.source / entry.path}: {image.problem}",
                        hint="mend or remove it, or pass --on-error skip",
                    )
                if image.unreadable or policy == "skip":
                    skipped.append(bad)
                    advance(1, entry.size)
                    continue
                kept.append(bad)
            clipped += is_clipped_grey(image.data)
            source_bytes += entry.size
            writer.add(image.data, entry.path, entry.label)
            advance(1, entry.size)
        size = writer.finish(plan.classes)
        return ShardReport(
            plan.shard_name(index),
            part.digest,
            writer.images,
            writer.bytes,
            source_bytes,
            size,
            clipped,
            tuple(skipped),
            tuple(kept),
        )


def _images(plan: Plan, index: int) -> Iterator[Loaded]:
    """What is to be stored of each file, or why it is not."""
    check, recode = plan.options.check, plan.options.recode
    files = read_files(plan.source, plan.entries(index))
    if check != "decode" and recode is None:
        for loaded in files:
            yield _processed(loaded, check, recode)
        return
    cores = usable_cores()
    waiting: deque[Future[Loaded]] = deque()
    with ThreadPoolExecutor(cores) as threads:
        try:
            for loaded in files:
                waiting.append(threads.submit(_processed, loaded, check, recode))
                if len(waiting) > 4 * cores:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def _processed(loaded: Loaded, check: Check, recode: Recode | None) -> Loaded:
    if loaded.problem is not None:
        return loaded
    reason = problem(loaded.data, check)
    if reason is not None:
        return loaded._replace(problem=reason)
    if recode is None:
        return loaded
    try:
        return loaded._replace(data=recoded(loaded.data, recode))
    except NotRecoded as error:
        return loaded._replace(problem=str(error))
