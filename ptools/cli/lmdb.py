"""`ptools lmdb info|verify|unpack|merge|export|view`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ptools.cli.lmdb_progress import bar
from ptools.cli.options import ForceOption, JsonOption

NOT_EQUAL = 3

Database = Annotated[
    Path,
    typer.Argument(
        metavar="LMDB",
        show_default=False,
        help="A set that pack-lmdb wrote, or one of its files; where it makes sense, another LMDB.",
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The folder to make.", show_default=False)
]

EXAMPLES = """\b
Examples:
  ptools lmdb info examples/shapes.lmdb
  ptools lmdb verify examples/shapes.lmdb --against examples/shapes
"""
INFO = """\b
Examples:
  ptools lmdb info examples/shapes.lmdb
  ptools lmdb info examples/shapes.lmdb/data.mdb --json
"""
VERIFY = """\b
Examples:
  ptools lmdb verify examples/shapes.lmdb
  ptools lmdb verify examples/shapes.lmdb --against examples/shapes
"""
UNPACK = """\b
Examples:
  ptools lmdb unpack examples/shapes.lmdb -o shapes
  ptools lmdb unpack examples/shapes.lmdb/data.mdb -o from_one_shard
"""
MERGE = """\b
Examples:
  ptools lmdb merge examples/shapes.lmdb -o copy.lmdb
  ptools lmdb merge examples/shapes.lmdb copy.lmdb -o both.lmdb
"""
EXPORT = """\b
Examples:
  ptools lmdb export examples/shapes.lmdb --to wds -o shapes-wds
  ptools lmdb export examples/shapes.lmdb --shard-size 100MB -o shards
"""
VIEW = """\b
Examples:
  ptools lmdb view examples/shapes.lmdb --tensorboard runs/shapes
  ptools lmdb view examples/shapes.lmdb --tensorboard runs/few --per-class 4
"""

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def lmdb() -> None:
    """Look into packed image sets, check, unpack, join them."""


def _show(command: str, report: Any, page: Callable[[Any], str], json: bool) -> None:
    from ptools import console

    if json:
        console.show_json(f"lmdb {command}", report.to_dict())
    else:
        console.write(page(report))


@app.command(epilog=INFO)
def info(path: Database, json: JsonOption = False) -> None:
    """Say what is in a set: classes, images, sizes, shards."""
    from ptools.image_lmdb.info import describe
    from ptools.image_lmdb.render import info_page

    report = describe(path)
    _show("info", report, info_page, json)


@app.command(epilog=VERIFY)
def verify(
    path: Database,
    against: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Compare with the folder it was made of.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Check structure, counts and every checksum of a set.

    Exit code 3: something is wrong, or differs from --against.
    """
    from ptools.image_lmdb.render import verify_page
    from ptools.image_lmdb.verify import verify as check

    with bar() as progress:
        report = check(path, against, progress=progress)
    _show("verify", report, verify_page, json)
    return 0 if report.ok else NOT_EQUAL


@app.command(epilog=UNPACK)
def unpack(
    path: Database,
    output: Output,
    json: JsonOption = False,
) -> None:
    """Restore the folder that a set was packed from: names and bytes."""
    from ptools.image_lmdb.render import unpack_page
    from ptools.image_lmdb.unpack import unpack as restore

    with bar() as progress:
        report = restore(path, output, progress=progress)
    _show("unpack", report, unpack_page, json)


@app.command(epilog=MERGE)
def merge(
    paths: Annotated[
        list[Path], typer.Argument(metavar="LMDB...", show_default=False, help="The sets to join.")
    ],
    output: Output,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Join sets by the names of their classes, copying their files.

    The classes of the result are those of all sets, sorted; the images of each keep their order.
    """
    from ptools.image_lmdb.merge import merge as join
    from ptools.image_lmdb.render import merge_page

    with bar() as progress:
        report = join(paths, output, force=force, progress=progress)
    _show("merge", report, merge_page, json)


@app.command(epilog=EXPORT)
def export(
    path: Database,
    output: Output,
    to: Annotated[Literal["wds"], typer.Option(help="WebDataset: tar files.")] = "wds",
    shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="The most bytes of one tar file.")
    ] = "1GiB",
    json: JsonOption = False,
) -> None:
    """Write a set as WebDataset tar files."""
    from ptools.files import parse_bytes
    from ptools.image_lmdb.export import export_wds
    from ptools.image_lmdb.render import export_page

    with bar() as progress:
        report = export_wds(path, output, parse_bytes(shard_size), progress=progress)
    _show("export", report, export_page, json)


@app.command(epilog=VIEW)
def view(
    path: Database,
    tensorboard: Annotated[
        Path, typer.Option(metavar="DIR", help="The log folder to write to.", show_default=False)
    ],
    per_class: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 16,
    json: JsonOption = False,
) -> None:
    """Show images of each class in TensorBoard."""
    from ptools.image_lmdb.render import view_page
    from ptools.image_lmdb.view import view as show

    report = show(path, tensorboard, per_class=per_class)
    _show("view", report, view_page, json)
