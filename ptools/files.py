"""Files and sizes: write all or nothing, never overwrite unasked, read and show byte counts."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptools.errors import UsageError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SIZE = re.compile(
    r"(?P<number>\d+(\.\d+)?)\s*(?P<prefix>[kmgtp]?)(?P<suffix>|b|ib)", re.IGNORECASE
)


def human_bytes(count: float) -> str:
    """Show a byte count with a binary unit: `human_bytes(1610612736)` is `"1.50 GiB"`."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    value, power = float(count), 0
    # 1023.995 would print as "1024.00": move up a unit just before.
    while abs(value) >= 1023.995 and power < len(_UNITS) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.2f} {_UNITS[power]}"


def parse_bytes(text: str) -> int:
    """Read a size as a person writes it.

    As in coreutils, `24GB` is decimal (24 x 1000^3), `24GiB` and `24G` are binary (24 x 1024^3);
    a number alone is bytes. Case does not matter.

    Raises:
        UsageError: the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match["suffix"].lower() == "ib" and not match["prefix"]):
        raise UsageError(f"{text!r} is not a size", hint="write it as 24GB, 24GiB, 512M or 1048576")
    power = " kmgtp".index(match["prefix"].lower() or " ")
    base = 1000 if match["suffix"].lower() == "b" else 1024
    return round(float(match["number"]) * float(base) ** power)


def shown_path(file: str) -> str:
    """A source file as a person knows it: from here on, or from its package's folder on."""
    path = Path(file)
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return file.rpartition("site-packages/")[2]


def nearest_project() -> Path | None:
    """The pyproject.toml of the current folder or the closest one above."""
    here = Path.cwd()
    files = (folder / "pyproject.toml" for folder in (here, *here.parents))
    return next((file for file in files if file.is_file()), None)


def free_space(path: str | Path) -> int:
    """Free bytes on the disk that holds `path`, which need not exist yet."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


@contextmanager
def atomic_write(path: str | Path, force: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes that name when the block ends.

    The content is on disk before the rename. If the block raises, nothing is left behind and an
    existing file stays as it was.

    Raises:
        UsageError: the file exists and `force` is not given, or it cannot be placed there.

        with atomic_write("report.csv") as temporary:
            temporary.write_text(report)
    """
    target = Path(path).resolve()  # through a link: the file it names is replaced, not the link
    _refuse(target, force)
    temporary = target.with_name(f".{target.stem}.{os.urandom(4).hex()}.tmp{target.suffix}")
    try:
        yield temporary
        sync(temporary)
        _refuse(target, force)  # it may have appeared meanwhile
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync(target.parent)


def _refuse(target: Path, force: bool) -> None:
    if target.is_dir():
        raise UsageError(f"{target} is a folder", hint="give the name of a file")
    if not target.parent.is_dir():
        raise UsageError(
            f"there is no folder {target.parent}", hint=f"make it with: mkdir -p {target.parent}"
        )
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} is not a regular file", hint="give the name of a file")
    if target.exists() and not force:
        raise UsageError(f"{target} already exists", hint="pass --force to replace it")


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
