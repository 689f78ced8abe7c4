"""Where a set comes to be: a folder beside its destination, or a remote store.

Both hold, until the set is complete: the plan, the shards, and for each finished shard a `.done`
file with its report. `meta.json` is written last: with it the set counts as whole.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from ptools.errors import PtoolsError, UsageError
from ptools.files import free_space, human_bytes

META = "meta.json"
SKIPPED = "skipped.jsonl"
PLAN = "plan"
LOCK = "lock"
SET, OLD = "set", "old"  # folders of a local workspace: the new set, and the one it replaces
_SHARD = r"data(-\d{5,})?\.mdb"
# lock.mdb is what liblmdb leaves where somebody opened the folder with it.
_FINAL = re.compile(rf"{_SHARD}|meta\.json|skipped\.jsonl|lock\.mdb")
_REPORT = re.compile(rf"{_SHARD}\.done")
_TEMPORARY = re.compile(r"\.(data|plan|meta|skipped)\b.*\.(part|tmp(\..*)?)")
_PASSING = re.compile(rf"{_REPORT.pattern}|plan|lock|part-\d+-of-\d+\.lock|{_TEMPORARY.pattern}")

_ELSEWHERE = "give another name with -o, or move it away"


class Store(Protocol):
    """A place where files get their names at once and for good."""

    output: str
    workspace: Path  # a local folder to build shards in

    def exists(self) -> bool:
        """Whether something is at the destination already."""
        ...

    def check_replaceable(self) -> None:
        """Raise UsageError if anything at the destination was not written by ptools."""
        ...

    def names(self) -> set[str]:
        """The files of the unfinished set."""
        ...

    def size(self, name: str) -> int | None:
        """The bytes of a file of the unfinished set, if it is there."""
        ...

    def put(self, name: str, file: Path) -> None:
        """Give a synced local file its name in the set; the file itself is gone afterwards."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        ...

    def read(self, name: str) -> bytes | None:
        """Read a small file, if it is there."""
        ...

    def fetch(self, name: str) -> Path:
        """A file of the set as a local one."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file of the unfinished set, if it is there."""
        ...

    def commit(self) -> None:
        """Make the set count as whole; its `meta.json` is there."""
        ...


def open_store(output: str) -> Store:
    """The store for a path, or for an URL that fsspec knows (`s3://bucket/set.lmdb`).

    Raises:
        UsageError: fsspec does not know the URL, or the folder of the path does not exist.
    """
    if "://" in output:
        from ptools.image_lmdb.remote import RemoteStore

        return RemoteStore(output)
    from ptools.image_lmdb.local import LocalStore

    return LocalStore(Path(output))


def is_passing(name: str) -> bool:
    """Whether a file is of use only until the set is complete."""
    return _PASSING.fullmatch(name) is not None


def is_final(name: str) -> bool:
    """Whether a file belongs to a set, or will have such a name in a moment."""
    return (_FINAL.fullmatch(name) or _TEMPORARY.fullmatch(name)) is not None


def shard_name(index: int, shards: int) -> str:
    """`data.mdb` if it is the only one: any LMDB tool opens the folder."""
    return "data.mdb" if shards == 1 else f"data-{index:05d}.mdb"


def shard_of(name: str) -> str | None:
    """The shard that a file is, or that it is the report on."""
    shard = name.removesuffix(".done")
    return shard if re.fullmatch(_SHARD, shard) else None


def check_ours(folder: Path) -> None:
    """Refuse a folder that holds anything else than the files of a set.

    Raises:
        UsageError: it does, or it is no folder.
    """
    _check_folder(folder, is_final)


def _check_workspace(folder: Path) -> None:
    inner = [folder / name for name in (SET, OLD) if (folder / name).is_dir()]
    _check_folder(folder, is_passing, inner)
    for one in inner:
        check_ours(one)


def _check_folder(
    folder: Path, is_ours: Callable[[str], bool], besides: Sequence[Path] = ()
) -> None:
    if folder.is_symlink() or not folder.is_dir():
        raise UsageError(f"{folder} exists and was not written by ptools", _ELSEWHERE)
    files = (file for file in folder.iterdir() if file not in besides)
    check_names(map(_name, files), str(folder), is_ours)


def _name(file: Path) -> str:
    # A folder may have the name of a shard, and is none of ours. What another packer has renamed
    # since it was listed is neither.
    return file.name if file.is_file() or not os.path.lexists(file) else f"{file.name}/"


def check_names(names: Iterable[str], place: str, is_ours: Callable[[str], bool]) -> None:
    """Refuse a place that holds a file which is not ours.

    Raises:
        UsageError: it does.
    """
    for name in sorted(names):
        if not is_ours(name):
            raise UsageError(f"{place} holds {name!r}, which ptools did not write", _ELSEWHERE)


@contextmanager
def writing(store: Store) -> Iterator[None]:
    """Tell in a sentence of a disk that is full or fails.

    Raises:
        PtoolsError: an OSError was raised.
    """
    try:
        yield
    except OSError as error:
        raise PtoolsError(
            f"cannot write {store.workspace}: {error.strerror or error}; "
            f"{human_bytes(free_space(store.workspace))} are free",
            hint="free some space there and run the same command again: finished shards are kept",
        ) from error


@contextmanager
def locked(store: Store, part: str | None = None) -> Iterator[None]:
    """Hold the workspace against a second packer; parts share it, and each holds its own file.

    Raises:
        PtoolsError: somebody else packs here.
    """
    folder = store.workspace
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write beside {store.output}: {error.strerror}", "give another place with -o"
        ) from error
    _check_workspace(folder)
    with _lock(store, LOCK, fcntl.LOCK_SH if part else fcntl.LOCK_EX):
        if part is not None:
            with _lock(store, f"part-{part.replace('/', '-of-')}.lock", fcntl.LOCK_EX):
                yield
            return
        try:
            _sweep(folder)  # what killed runs left
            yield
        finally:
            _sweep(folder)
            _remove_if_unused(folder)


def _sweep(folder: Path) -> None:
    """Delete unfinished files: while a workspace is held, no one else writes there."""
    for file in (*folder.glob(".*"), *folder.glob(f"{SET}/.*")):
        if _TEMPORARY.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _remove_if_unused(folder: Path) -> None:
    if folder.is_dir() and {file.name for file in folder.iterdir()} <= {LOCK}:
        (folder / LOCK).unlink(missing_ok=True)
        with suppress(OSError):  # another packer may just have asked for the lock
            folder.rmdir()


@contextmanager
def alone(store: Store) -> Iterator[bool]:
    """Wait until nobody else packs here; tells whether the workspace is still there."""
    try:
        descriptor = _open_lock(store.workspace / LOCK)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield _is_at(descriptor, store.workspace / LOCK)
    finally:
        os.close(descriptor)


@contextmanager
def _lock(store: Store, name: str, kind: int) -> Iterator[None]:
    """A lock that the system lets go when the process ends, however it ends."""
    descriptor = _open_lock(store.workspace / name)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            held = _is_at(descriptor, store.workspace / name)
        except BlockingIOError:
            held = False
        if not held:
            raise PtoolsError(
                f"{store.output} is being packed by another process",
                hint="wait for it, or stop it first",
            )
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    # To be written: NFS, where parts of a set meet, locks no file that is only read.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name: a run that completes its set deletes the lock."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
