"""Restore the folder that a set was packed from."""

import os
import posixpath
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptools.errors import PtoolsError
from ptools.files import free_space, human_bytes
from ptools.image_lmdb.database import open_images
from ptools.image_lmdb.errors import DamagedDatabase
from ptools.image_lmdb.info import DatabaseInfo, describe
from ptools.image_lmdb.newfolder import MARKER, new_folder
from ptools.image_lmdb.pathset import PathSet
from ptools.image_lmdb.progress import Listener, Meter


@dataclass(frozen=True)
class UnpackReport:
    """A restored folder."""

    path: Path
    output: Path
    classes: int
    images: int  # in the set
    files: int  # in the folder: a list may have named one twice
    bytes: int  # of the files
    kept: int  # files that an earlier, interrupted run had written
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON: sizes in bytes, time in seconds."""
        return {**asdict(self), "path": str(self.path), "output": str(self.output)}


def unpack(path: str | Path, output: str | Path, progress: Listener | None = None) -> UnpackReport:
    """Write every image of a set to a folder, under its own path; empty classes get their folders.

    The folder gets its name when it is complete and on the disk; a run that was interrupted is
    continued by the same call. Modes and times of files are not in a set: files get new ones.

    Raises:
        UsageError: the output exists, or cannot be placed there.
        DamagedDatabase: an image is damaged, or a path would lead out of the folder.
        PtoolsError: the disk is full, or two images with one path differ.
    """
    started = time.monotonic()
    info = describe(path)
    output = Path(output)
    with new_folder(output, inputs=info.path) as part:
        _check_space(info, part)
        work = _Unpacking(info, part)
        work.write_images(Meter(progress, "unpacking", info.images, info.bytes))
        for name, images in info.classes.items():
            if not images:
                work.make_folder(work.checked(name))
        work.check_exact()
    seconds = time.monotonic() - started
    return UnpackReport(
        info.path,
        output,
        len(info.classes),
        info.images,
        work.files,
        work.bytes,
        work.kept,
        seconds,
    )


def _check_space(info: DatabaseInfo, part: Path) -> None:
    needed = info.file_bytes if info.bytes is None else info.bytes
    there = sum(
        (folder / name).lstat().st_size for folder, _, names in _walk(part) for name in names
    )
    free = free_space(part)
    if needed - there > free:
        raise PtoolsError(
            f"{part} needs {human_bytes(needed - there)}, and {human_bytes(free)} are free",
            hint="free some space there, or give another place with -o",
        )


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    return ((Path(top), folders, names) for top, folders, names in os.walk(folder))


class _Unpacking:
    """Files on their way from a set to a folder."""

    def __init__(self, info: DatabaseInfo, part: Path) -> None:
        self._images = open_images(info.path)
        self._part = part
        self._met = PathSet()
        self._folder = ""  # the last one that was made: most images share theirs with the next
        self.files = self.bytes = self.kept = 0

    def write_images(self, meter: Meter) -> None:
        for index, path in enumerate(self._images.paths()):
            (image,) = self._images.fetch([index])
            self._write(self.checked(path), image.data)
            meter.add(1, len(image.data))

    def checked(self, path: str) -> str:
        """A path that stays in the folder."""
        names = path.split("/")
        if not path or ".." in names or path[0] == "/" or "\0" in path or names[0] == MARKER:
            raise DamagedDatabase(
                f"{self._images.path} holds {path!r}, which is no path within a folder",
                hint="do not trust it: ptools pack-lmdb writes no such paths",
            )
        return posixpath.normpath(path)

    def make_folder(self, folder: str) -> None:
        """Make the folders one by one: none may be a link to somewhere else."""
        if folder == self._folder:
            return
        place = self._part
        for name in folder.split("/"):
            place /= name
            place.mkdir(exist_ok=True)
            if place.is_symlink():
                raise PtoolsError(f"{place} is a link, which ptools did not make", "remove it")
        self._folder = folder

    def _write(self, path: str, data: bytes) -> None:
        self.make_folder(posixpath.dirname(path))
        place = self._part / path
        new, same = self._met.add(path), _holds(place, data)
        if not new and not same:
            raise PtoolsError(
                f"{self._images.path} holds {path!r} twice, with different contents",
                hint="a folder cannot hold both: export the set with ptools lmdb export",
            )
        if not same:
            place.unlink(missing_ok=True)  # never written through: it may be a link
            with place.open("xb") as file:
                file.write(data)
        if new:
            self.files += 1
            self.bytes += len(data)
            self.kept += same

    def check_exact(self) -> None:
        """Every file is one of the set's; fewer than its paths: the disk takes some for the same.

        Raises:
            PtoolsError: it is not so.
        """
        files = 0
        for folder, _, names in _walk(self._part):
            for name in names:
                path = str((folder / name).relative_to(self._part))
                files += path != MARKER
                if path != MARKER and path not in self._met:
                    message = f"{folder / name} is not of this set"
                    raise PtoolsError(message, f"remove it, or all of {self._part}, and try again")
        if files != self.files:
            raise PtoolsError(
                f"{self._images.path} holds paths that are one to the disk of {self._part}",
                hint="unpack it to a disk that tells upper and lower case apart",
            )


def _holds(place: Path, data: bytes) -> bool:
    return (
        not place.is_symlink()
        and place.is_file()
        and place.stat().st_size == len(data)
        and place.read_bytes() == data
    )
