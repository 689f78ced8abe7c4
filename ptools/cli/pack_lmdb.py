"""`ptools pack-lmdb`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ptools.cli.options import DryRunOption, ForceOption, JsonOption
from ptools.cli.pack_lmdb_pages import run
from ptools.files import parse_bytes

EXAMPLES = """\b
Examples:
  ptools pack-lmdb examples/shapes -o shapes.lmdb
  ptools pack-lmdb examples/shapes -o small.lmdb --resize-short 32
"""


def pack_lmdb(
    source: Annotated[
        Path | None,
        typer.Argument(
            show_default=False,
            help="The folder of class folders, as ImageFolder takes it; with --list, the folder "
            "that its paths count from.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="The folder to make, or an URL for fsspec (s3://bucket/imgs.lmdb); by default "
            "SOURCE.lmdb.",
        ),
    ] = None,
    list: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Pack the files of a list: .txt or .csv with path,label a line, or .parquet.",
        ),
    ] = None,
    check: Annotated[
        Literal["header", "decode", "none"],
        typer.Option(help="How bad images are found: by size and end, by decoding, or not."),
    ] = "header",
    on_error: Annotated[
        Literal["skip", "fail", "keep"],
        typer.Option(help="Leave bad images out and list them, stop at the first, or pack them."),
    ] = "skip",
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The most bytes of one file; 0 for no limit.")
    ] = "8GiB",
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Processes; by default as many as are worth it, at most one a core.",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Pack part I of N, I from 0 to N-1: one job of a cluster's array.",
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where shards are packed: here, or on Ray.")
    ] = "local",
    resize_short: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=1,
            help="Make larger images anew with a shorter side of PIXELS. Orientation tag and "
            "colour profile stay, other EXIF goes.",
        ),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(
            min=1, max=100, help="Quality of the JPEGs made anew; 90 with --resize-short."
        ),
    ] = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> int:
    """Pack an ImageFolder into LMDB, safe against kill -9.

    Files are stored byte for byte, with the classes, order and labels of torchvision's ImageFolder;
    ptools.LMDBImageFolder reads them back. The set gets its name when it is complete and on the
    disk; what was interrupted is continued by the same command. Exit code 3: bad files were found.
    """
    return run(
        source,
        json,
        output=output,
        list=list,
        check=check,
        on_error=on_error,
        shard_size=parse_bytes(shard_size),
        jobs=jobs,
        part=part,
        engine=engine,
        resize_short=resize_short,
        quality=quality,
        force=force,
        dry_run=dry_run,
    )
