"""`pack_lmdb`: a folder of images packed into LMDB."""

from pathlib import Path

from ptools.image_lmdb.check import Check
from ptools.image_lmdb.plan import OnError, Options
from ptools.image_lmdb.planning import default_output, place_of
from ptools.image_lmdb.progress import Listener
from ptools.image_lmdb.report import PackReport
from ptools.image_lmdb.run import Engine, Run
from ptools.image_lmdb.store import open_store

SHARD_SIZE = 8 << 30  # bytes


def pack_lmdb(
    source: str | Path | None,
    output: str | Path | None = None,
    *,
    list: str | Path | None = None,
    check: Check = "header",
    on_error: OnError = "skip",
    shard_size: int = SHARD_SIZE,
    jobs: int | None = None,
    part: str | None = None,
    engine: Engine = "local",
    resize_short: int | None = None,
    quality: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Listener | None = None,
) -> PackReport:
    """Pack a folder of class folders into LMDB, with the classes and order of ImageFolder.

    Files are stored byte for byte. The set gets its name when it is complete and on the disk; a run
    that was interrupted, however hard, is continued by the same call, to the same bytes.

    Args:
        source: the folder of class folders; with `list`, what its paths count from.
        output: a folder, or an URL for fsspec; `SOURCE.lmdb` by default.
        list: a file of `path,label` lines (.txt, .csv, .parquet) instead of a walk.
        check: what is done to find bad images: their ends and sizes, decoding, or nothing.
        on_error: `skip` bad images and list them, `fail` at the first, or `keep` them.
        shard_size: the most bytes of one file; 0 for no limit.
        jobs: how many processes; by default as many as are worth it, at most one a core.
        part: `"i/N"` packs every N-th shard from the i-th, counted from 0; the last one commits.
        engine: `ray` packs the shards on a Ray cluster.
        resize_short, quality: make images anew, smaller; see `Recode`.
        force: replace a set that exists.
        dry_run: plan only.
        progress: is told how far it is.

    Raises:
        UsageError: source or output do not allow it.
        PtoolsError: a file is bad and `on_error` is "fail", the disk is full, or another process
            packs to the same output.

        report = pack_lmdb("imgs")
        dataset = LMDBImageFolder(report.output)
    """
    manifest = None if list is None else Path(list)
    folder = place_of(source, manifest)
    if output is None:
        output = default_output(folder, manifest, source is not None)
    run = Run(
        source=folder,
        manifest=manifest,
        store=open_store(str(output)),
        options=Options(check, on_error, resize_short, quality),
        shard_size=shard_size,
        jobs=jobs,
        part=part,
        engine=engine,
        force=force,
        progress=progress,
    )
    return run.dry() if dry_run else run.pack()
