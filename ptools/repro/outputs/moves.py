"""Move files and folders so that at each moment one whole copy is there."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from errno import EXDEV
from pathlib import Path

Signature = tuple[int, int, int]  # size, mtime in ns, inode

_MOST = 20_000  # files that are looked at before and after a run


def move(source: Path, target: Path) -> None:
    """Move a file, link or folder in place of a file that may be there, to another disk too.

    Raises:
        OSError: it cannot be; the source is whole, and the target as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.rename(target)
        return
    except OSError as error:
        if error.errno != EXDEV:
            raise
    partial = target.with_name(f".{target.name[-100:]}.partial")
    try:
        if is_folder(source):
            shutil.copytree(source, partial, symlinks=True)
        else:
            shutil.copy2(source, partial, follow_symlinks=False)
        partial.rename(target)
    except shutil.Error as error:  # copytree's, which is an OSError without a number
        raise OSError(EXDEV, str(error)) from error
    finally:
        remove(partial)
    remove(source)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, as far as that is allowed."""
    if is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def exists(path: Path) -> bool:
    """Whether there is something of that name, be it a link to nothing."""
    return os.path.lexists(path)


def is_folder(path: Path) -> bool:
    """Whether it is a folder itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def signature(path: Path) -> Signature | None:
    """What changes when a file does; None for a folder, or if there is nothing."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return None if stat.S_ISDIR(status.st_mode) else _signature(status)


def contents(folder: Path, but: str) -> dict[Path, Signature] | None:
    """The files below a folder; None if there are too many to look at.

    Args:
        but: folders with this in their name are passed over.
    """
    found: dict[Path, Signature] = {}
    folders = [folder]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if len(found) + len(folders) > _MOST:
                    return None
                if not entry.is_dir(follow_symlinks=False):
                    found[path] = _signature(entry.stat(follow_symlinks=False))
                elif but not in entry.name and entry.name != "__pycache__":
                    folders.append(path)
    return found


def _signature(status: os.stat_result) -> Signature:
    return status.st_size, status.st_mtime_ns, status.st_ino
