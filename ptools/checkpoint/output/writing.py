"""Write a planned file beside its destination, read it back, and only then give it its name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ptools.checkpoint.data.content import Content, FileRange
from ptools.checkpoint.data.copying import Advance, Copied, checksums, write_contents
from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.report import Checked
from ptools.errors import PtoolsError, UsageError
from ptools.files import atomic_write, free_space, human_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """A file to write: each content with its place, its size, and what `finish` writes around them.

    `finish` takes the open file's descriptor and the contents as they were copied; `check` reads
    the finished file as anyone would, and tells whether it says what was meant.
    """

    placed: tuple[tuple[int, Content], ...]
    nbytes: int
    finish: Callable[[int, Sequence[Copied]], None] = lambda descriptor, copied: None
    check: Callable[[Path], bool] = lambda path: True


def write_plan(
    plan: Plan,
    path: Path,
    like: Path,
    force: bool,
    name_of: Callable[[Content], str],
    advance: Advance,
) -> Checked:
    """Write the file, with the mode and owner of `like`. It appears under its name when complete.

    Raises:
        UsageError: the file exists and `force` is not given.
        CorruptCheckpoint: a source's checksum is wrong; `name_of` tells what it holds.
        PtoolsError: the disk is too small, or does not give back what was written.
    """
    check_space(plan.nbytes, path)
    with atomic_write(path, force) as temporary:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            copied = write_contents(descriptor, plan.placed, advance)
            plan.finish(descriptor, copied)
            _read_back(descriptor, temporary, copied, name_of)
            if not plan.check(temporary):
                raise PtoolsError(f"{path} could not be read back as it was written")
            _same_owner(descriptor, like)
        finally:
            os.close(descriptor)
    known = [copy.content.nbytes for copy in copied if copy.content.crc is not None]
    return Checked(len(known), sum(known), sum(copy.content.nbytes for copy in copied))


def check_space(nbytes: int, path: Path) -> None:
    """Refuse to start what cannot fit."""
    if (free := free_space(path)) < nbytes:
        raise PtoolsError(
            f"{path} needs {human_bytes(nbytes)}, and the disk has {human_bytes(free)} free",
            hint="free some space, or write to another disk with -o",
        )


def check_sources(contents: Sequence[Content], name_of: Callable[[Content], str]) -> None:
    """Compare contents with the CRC-32s that their source recorded.

    Raises:
        CorruptCheckpoint: some differ; `name_of` tells what they hold.
    """
    found = zip(contents, checksums(contents, lambda amount: None), strict=True)
    bad = [content for content, crc in found if content.crc not in (None, crc)]
    if bad:
        names = ", ".join(name_of(content) for content in bad[:3])
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise CorruptCheckpoint(
            f"the file is damaged: the checksum is wrong of {names}{more}",
            hint="copy or download it again; nothing was written",
        )


def _read_back(
    descriptor: int, path: Path, copied: Sequence[Copied], name_of: Callable[[Content], str]
) -> None:
    """Compare what the file now holds with what was meant, while the disk is still writing."""
    with ThreadPoolExecutor(1) as thread:
        syncing = thread.submit(os.fsync, descriptor)
        ranges = [FileRange(path, copy.at, copy.content.nbytes) for copy in copied]
        found = checksums(ranges, lambda amount: None)
        wrong = [copy.content for copy, crc in zip(copied, found, strict=True) if copy.crc != crc]
        if wrong:
            check_sources(wrong, name_of)
            raise PtoolsError(f"the disk does not give back what was written to {path.parent}")
        syncing.result()  # an error of the disk is told once: here


def _same_owner(descriptor: int, like: Path) -> None:
    status = like.stat()
    with contextlib.suppress(PermissionError):  # only root may give files away
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, status.st_mode & 0o777)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Tell what the system refuses while `path` is written as an error of ours."""
    try:
        yield
    except OSError as error:
        hint = "write to another place with -o"
        if error.errno == errno.ENOSPC:
            hint = f"free some space, or {hint}"
        raise PtoolsError(f"{path} cannot be written: {error.strerror or error}", hint) from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill; it takes that name when the block ends.

    Raises:
        UsageError: something of that name exists.
    """
    if path.exists():
        raise UsageError(f"{path} already exists", hint="give the name of a new folder with -o")
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_hashed(write: Callable[[Path], Checked], path: Path, force: bool) -> tuple[Path, Checked]:
    """Write a file under a name with the start of its SHA-256: `net.pt` as `net-1a2b3c4d.pt`.

    torch.hub compares these digits with the file's.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = Path(folder) / path.name
        checked = write(written)
        with written.open("rb") as file:
            digits = hashlib.file_digest(file, "sha256").hexdigest()[:8]
        target = path.with_name(f"{path.stem}-{digits}{path.suffix}")
        if target.exists() and not force:
            raise UsageError(f"{target} already exists", hint="pass --force to replace it")
        written.replace(target)
    return target, checked
