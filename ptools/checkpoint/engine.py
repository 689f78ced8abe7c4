"""`fix_ckpt`: read, fix, write, check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptools.checkpoint.data.copying import Advance
from ptools.checkpoint.fixing import Wishes, fix
from ptools.checkpoint.formats import open_checkpoint
from ptools.checkpoint.job import Job
from ptools.checkpoint.names.naming import Naming, parse_rename
from ptools.checkpoint.names.proof import shapes_of
from ptools.checkpoint.output.destination import destination
from ptools.checkpoint.output.journal import undo
from ptools.checkpoint.output.writing import explained
from ptools.checkpoint.pickles.nodes import storages
from ptools.checkpoint.report import Checked, FixReport


def fix_ckpt(
    source: str | Path,
    output: str | Path | None = None,
    *,
    to: str = "cpu",
    model: Any = None,
    strip: Sequence[str] = (),
    rename: Sequence[str] = (),
    keep: Sequence[str] = (),
    drop: Sequence[str] = (),
    weights_only: bool = False,
    ema: bool = False,
    dtype: str | None = None,
    compact: bool = False,
    safetensors: bool = False,
    shard_size: int | None = None,
    inplace: bool = False,
    hash: bool = False,
    force: bool = False,
    dry_run: bool = False,
    advance: Advance = lambda amount: None,
) -> FixReport:
    """Make a checkpoint that loads anywhere, under the model's own names.

    The pickle in it is read and written as text: nothing in it is imported or executed. Weights
    are copied from file to file, in memory of a few megabytes.

    Args:
        source: a file or folder in any format that `open_checkpoint` reads.
        output: the file to write, or with `shard_size` the folder; by default beside the source,
            as `model.cpu.pt`.
        to: where tensors are to be loaded: "cpu", "cuda:0", "meta" (no data), or "keep".
        model: the module that is to load it, or its names and shapes: chooses how to rename.
        strip: prefixes to remove from names; "none" leaves wrappers' names in.
        rename: `REGEX=REPLACEMENT`, applied to names in turn.
        keep, drop: globs of names, or of the checkpoint's entries, to keep or to leave out.
        weights_only: write the state_dict alone. `ema`: that of the moving average.
        dtype: of the weights that are floating-point numbers, as "bfloat16".
        compact: cut off what of a storage no tensor sees.
        safetensors: write that format, which holds the weights alone.
        shard_size: bytes a file at most, in a folder with an index.
        inplace: the result takes the source's name.
        hash: put the first eight digits of the file's SHA-256 in its name, as torch.hub expects.

    Raises:
        NotACheckpoint, CorruptCheckpoint: the source cannot be read.
        UsageError: the output exists, or an option does not fit.
        PtoolsError: the disk is too small.

        ptools.fix_ckpt("last.ckpt", "weights.pt", weights_only=True).load
    """
    source = Path(source)
    interrupted = inplace and not dry_run and undo(source)
    checkpoint = open_checkpoint(source)
    before = {id(storage): storage.content for storage in storages(checkpoint.root)}
    where = destination(checkpoint, _path(output), to, safetensors, shard_size, inplace)
    alone = weights_only or ema or where.safetensors or shard_size is not None
    naming = Naming(
        tuple(strip),
        tuple(parse_rename(text) for text in rename),
        tuple(keep),
        tuple(drop),
        None if model is None else shapes_of(model),
    )
    fixed = fix(checkpoint, Wishes(naming, model, to, alone, ema, dtype, compact))
    if interrupted:
        fixed.notes.append("what an interrupted --inplace had left was undone first")
    if where.safetensors or shard_size is not None:
        fixed.leave_out_all_but_tensors()
    job = Job(checkpoint, fixed, where, before, checkpoint.nbytes, force, advance)
    if dry_run or not (job.needed or output is not None or hash):
        return job.report((), Checked())
    with explained(where.path):
        if inplace and job.only_pickle_changed():
            return job.patch()
        return job.write(hash)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
