"""Packing with `ptools pack-lmdb`, which needs no Typer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptools import console
from ptools.cli.lmdb_progress import bar

FOUND_BAD = 3


def run(source: Path | None, json: bool = False, **options: Any) -> int:
    """Pack a folder, and tell what came of it."""
    from ptools.image_lmdb.engine import pack_lmdb
    from ptools.image_lmdb.render import clipped_warning, pack_page

    with bar() as progress:
        report = pack_lmdb(source, progress=progress, **options)
    for note in report.notes:
        console.warn(note)
    if report.clipped_grey:
        console.warn(clipped_warning(report.clipped_grey))
    if json:
        console.show_json("pack-lmdb", report.to_dict())
    else:
        console.write(pack_page(report))
    return FOUND_BAD if report.skipped or report.kept else 0


def plain(words: Sequence[str]) -> tuple[Path, dict[str, Any]] | None:
    """The source and the options, if there are but SOURCE and -o OUTPUT; else None."""
    options: dict[str, Any] = {}
    match words:
        case [source, "-o" | "--output", output] | ["-o" | "--output", output, source]:
            options["output"] = output
        case [source]:
            output = ""
        case _:
            return None
    return None if source.startswith("-") or output.startswith("-") else (Path(source), options)
