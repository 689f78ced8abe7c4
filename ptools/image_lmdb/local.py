"""A set that comes to be in a folder beside its destination."""

from contextlib import suppress
from pathlib import Path

from ptools.errors import UsageError
from ptools.files import atomic_write, sync
from ptools.image_lmdb.store import META, OLD, SET, check_ours, is_passing


class LocalStore:
    """Builds `OUT.part/set`, then gives it the name `OUT`; see `Store`.

    Raises:
        UsageError: the folder that should hold OUT does not exist.
    """

    def __init__(self, output: Path) -> None:
        self.output = str(output)
        self._path = output.absolute()
        self.workspace = self._path.with_name(self._path.name + ".part")
        self._set = self.workspace / SET
        self._old = self.workspace / OLD
        parent = self._path.parent
        if not parent.is_dir():
            raise UsageError(f"there is no folder {parent}", f"make it with: mkdir -p {parent}")

    def exists(self) -> bool:
        return self._path.exists() or self._path.is_symlink()

    def check_replaceable(self) -> None:
        if not self.exists():
            return
        check_ours(self._path)
        if not (self._path / META).exists():
            raise UsageError(
                f"{self.output} is no set that ptools finished", "move it away, or give -o"
            )

    def names(self) -> set[str]:
        listed = _names(self.workspace)
        return listed | _names(self._set) if self._set.is_dir() else listed

    def size(self, name: str) -> int | None:
        with suppress(FileNotFoundError):
            return self._at(name).stat().st_size
        return None

    def put(self, name: str, file: Path) -> None:
        file.replace(self._at(name))
        sync(self._at(name).parent)

    def write(self, name: str, data: bytes) -> None:
        if is_passing(name):  # what power takes away of these is made again
            temporary = self.workspace / f".{name}.part"
            temporary.write_bytes(data)
            temporary.replace(self._at(name))
            return
        with atomic_write(self._at(name), force=True) as temporary:
            temporary.write_bytes(data)

    def read(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return self._at(name).read_bytes()
        return None

    def fetch(self, name: str) -> Path:
        return self._at(name)

    def remove(self, name: str) -> None:
        self._at(name).unlink(missing_ok=True)

    def commit(self) -> None:
        if self.exists():
            self.check_replaceable()
            _remove(self._old)  # of a run that was killed when the new set had its name
            self._path.rename(self._old)
        self._set.rename(self._path)
        sync(self._path.parent)
        _remove(self._old)
        _remove(self.workspace)

    def _at(self, name: str) -> Path:
        if is_passing(name):
            return self.workspace / name
        self._set.mkdir(exist_ok=True)
        return self._set / name


def _names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def _remove(folder: Path) -> None:
    """Delete a folder of ours, if it is there."""
    if folder.is_dir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
