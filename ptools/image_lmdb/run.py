"""One run of the packer: plan, pack the shards that are not there yet, commit."""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ptools.errors import PtoolsError, UsageError
from ptools.files import free_space, human_bytes
from ptools.image_lmdb.metadata import Metadata, ShardEntry, write_metadata, write_skipped
from ptools.image_lmdb.on_ray import pack_on_ray
from ptools.image_lmdb.packing import finished, pack_shard
from ptools.image_lmdb.plan import Options, Plan
from ptools.image_lmdb.planning import make_plan
from ptools.image_lmdb.progress import Listener, Meter
from ptools.image_lmdb.report import PackReport, ShardReport, Skipped
from ptools.image_lmdb.store import META, PLAN, Store, alone, locked, shard_of, writing

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Run:
    """One call of `pack_lmdb`."""

    source: Path
    manifest: Path | None
    store: Store
    options: Options
    shard_size: int
    jobs: int | None
    part: str | None
    engine: Engine
    force: bool
    progress: Listener | None

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"{self.jobs} processes cannot pack", hint="give --jobs 1 or more")
        if self.shard_size < 0:
            raise UsageError(
                f"a shard cannot have {self.shard_size} bytes", hint="--shard-size 0 sets no limit"
            )

    def dry(self) -> PackReport:
        """Plan, and write nothing beside the destination."""
        self._refuse()
        with tempfile.TemporaryDirectory() as folder:
            plan, notes = self._plan(Path(folder) / PLAN)
        return self._report(plan, notes, [], 0.0, dry_run=True)

    def pack(self) -> PackReport:
        started = time.monotonic()
        indexes = _indexes(self.part)
        self._refuse()
        with writing(self.store), locked(self.store, self.part):
            self._refuse()  # another run may have finished meanwhile
            plan, notes = self._shared_plan() if self.part else self._fresh_plan()
            mine = range(len(plan.parts))[indexes]
            missing = [index for index in mine if finished(plan, index, self.store) is None]
            self._check_space(plan, missing)
            reports = self._pack_shards(plan, mine, missing)
            if self.part is None:
                self._commit(plan, reports)
            complete = self.part is None or self._is_whole(plan)
        if self.part is not None and complete:
            self._commit_alone(plan)
        seconds = time.monotonic() - started
        return self._report(plan, notes, reports, seconds, len(mine) - len(missing), complete)

    def _refuse(self) -> None:
        if self.manifest is None:
            _check_places(self.source, self.store)
        if self.store.exists() and not self.force:
            raise UsageError(
                f"{self.store.output} already exists", hint="pass --force to replace it"
            )
        self.store.check_replaceable()

    def _plan(self, file: Path) -> tuple[Plan, tuple[str, ...]]:
        meter = Meter(self.progress, "listing")
        try:
            plan, notes = make_plan(
                self.source, self.manifest, self.options, self.shard_size, file, meter
            )
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        if self.options.on_error == "fail" and plan.unreadable:
            path, reason = plan.unreadable[0]
            raise PtoolsError(
                f"{self.source / path}: {reason}", "mend or remove it, or pass --on-error skip"
            )
        return plan, notes

    def _fresh_plan(self) -> tuple[Plan, tuple[str, ...]]:
        """The plan of the source as it is now; what an older one left and has no use goes."""
        new = self.store.workspace / ".plan.part"
        plan, notes = self._plan(new)
        wanted = {plan.shard_name(index) for index in range(len(plan.parts))}
        for name in self.store.names():
            if (shard := shard_of(name)) is not None and shard not in wanted:
                self.store.remove(name)
        self.store.remove(META)  # of a set that is to be replaced
        if self.engine == "ray":
            self.store.put(PLAN, new)
            return Plan.load(self.store.fetch(PLAN)), notes
        local = self.store.workspace / PLAN
        new.rename(local)
        return Plan.load(local), notes

    def _shared_plan(self) -> tuple[Plan, tuple[str, ...]]:
        """The plan that all parts follow: the first of them makes it."""
        notes: tuple[str, ...] = ()
        if self.store.size(PLAN) is None:
            new = self.store.workspace / f".plan.{os.urandom(4).hex()}.part"
            _, notes = self._plan(new)
            self.store.remove(META)  # of a set that is to be replaced
            self.store.put(PLAN, new)
        plan = Plan.load(self.store.fetch(PLAN))
        mine = self.source.absolute(), self.options, self.shard_size
        if (plan.source, plan.options, plan.shard_size) != mine:
            raise UsageError(
                f"the other parts of {self.store.output} have another source or other options",
                hint=f"give all parts the same, or delete what they made: {self.store.workspace}",
            )
        return plan, notes

    def _check_space(self, plan: Plan, missing: Sequence[int]) -> None:
        sizes = sorted((plan.parts[index].file_bytes for index in missing), reverse=True)
        at_once = sizes[:1] if "://" in self.store.output else sizes
        free = free_space(self.store.workspace)
        if sum(at_once) > free:
            raise PtoolsError(
                f"{self.store.output} needs {human_bytes(sum(at_once))}, and "
                f"{human_bytes(free)} are free",
                hint="free some space there, or give another place with -o",
            )

    def _pack_shards(
        self, plan: Plan, indexes: Sequence[int], missing: Sequence[int]
    ) -> list[ShardReport]:
        parts = [plan.parts[index] for index in missing]
        images, nbytes = sum(part.images for part in parts), sum(part.bytes for part in parts)
        meter = Meter(self.progress, "packing", images, nbytes)
        if self.engine == "ray":
            return pack_on_ray(plan, self.store, indexes, meter.add)
        return [pack_shard(plan, index, self.store, meter.add, self.jobs) for index in indexes]

    def _is_whole(self, plan: Plan) -> bool:
        """Whether all shards are there; asked while others that finish cannot commit."""
        if self.store.size(PLAN) is None:
            return True  # a part on another machine was the last, and has committed
        count = len(plan.parts)
        return all(finished(plan, index, self.store) is not None for index in range(count))

    def _commit_alone(self, plan: Plan) -> None:
        with writing(self.store), alone(self.store) as there:
            if not there:
                return  # another part was the last as well, and has committed
            found = [finished(plan, index, self.store) for index in range(len(plan.parts))]
            reports = [report for report in found if report is not None]
            if len(reports) == len(plan.parts):
                self._commit(plan, reports)

    def _commit(self, plan: Plan, reports: Sequence[ShardReport]) -> None:
        write_skipped(self.store, _skipped(plan, reports))
        metadata = Metadata(
            plan.classes,
            sum(report.images for report in reports),
            sum(report.bytes for report in reports),
            tuple(ShardEntry(one.file, one.images, one.file_bytes) for one in reports),
        )
        write_metadata(self.store, metadata)
        self.store.commit()

    def _report(
        self,
        plan: Plan,
        notes: tuple[str, ...],
        reports: Sequence[ShardReport],
        seconds: float,
        shards_kept: int = 0,
        complete: bool = True,
        dry_run: bool = False,
    ) -> PackReport:
        return PackReport(
            source=self.source,
            output=self.store.output,
            classes=len(plan.classes),
            images=plan.images if dry_run else sum(one.images for one in reports),
            bytes=plan.bytes if dry_run else sum(one.bytes for one in reports),
            source_bytes=plan.bytes if dry_run else sum(one.source_bytes for one in reports),
            file_bytes=plan.file_bytes if dry_run else sum(one.file_bytes for one in reports),
            shards=len(plan.parts) if dry_run else len(reports),
            seconds=seconds,
            complete=complete,
            dry_run=dry_run,
            shards_kept=shards_kept,
            clipped_grey=sum(one.clipped_grey for one in reports),
            skipped=tuple(_skipped(plan, reports)),
            kept=tuple(bad for one in reports for bad in one.kept),
            notes=notes,
        )


def _skipped(plan: Plan, reports: Sequence[ShardReport]) -> list[Skipped]:
    unreadable = [Skipped(path, reason) for path, reason in plan.unreadable]
    return unreadable + [bad for report in reports for bad in report.skipped]


def _indexes(part: str | None) -> slice:
    """Which shards a part packs.

    Raises:
        UsageError: it is not I/N, or I is not below N.
    """
    if part is None:
        return slice(None)
    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UsageError(
            f"{part!r} is no part", hint="write it as I/N, I from 0 to N-1, like 0/4 to 3/4"
        )
    return slice(int(index), None, int(count))


def _check_places(source: Path, store: Store) -> None:
    if "://" not in store.output and Path(store.output).resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"{store.output} lies inside of {source}, and would be packed into itself",
            hint="give another place with -o",
        )
