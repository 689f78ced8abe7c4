"""A set that comes to be in a remote store, through fsspec."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ptools.errors import PtoolsError, UsageError
from ptools.image_lmdb.store import META, PLAN, check_names, is_final, is_passing


class RemoteStore:
    """Builds shards in a temporary folder and uploads each; see `Store`.

    Raises:
        UsageError: fsspec does not know the URL, or lacks the package for it.
    """

    def __init__(self, url: str) -> None:
        self.output = url
        self._files, self._path = _file_system(url)
        # The same for the same URL: what a killed run left is found and overwritten.
        name = hashlib.sha256(url.encode()).hexdigest()[:16]
        self.workspace = Path(tempfile.gettempdir()) / f"ptools-lmdb-{name}.part"

    def exists(self) -> bool:
        with self._errors():
            return bool(self._files.exists(self._at(META)))

    def check_replaceable(self) -> None:
        check_names(self.names(), self.output, lambda name: is_final(name) or is_passing(name))

    def names(self) -> set[str]:
        with self._errors():
            if not self._files.exists(self._path):
                return set()
            paths = {path.rstrip("/") for path in self._files.ls(self._path, detail=False)}
            # Some stores list the folder itself, as an empty object.
            return {Path(path).name for path in paths - {self._path.rstrip("/")}}

    def size(self, name: str) -> int | None:
        with self._errors():
            try:
                return int(self._files.info(self._at(name))["size"])
            except FileNotFoundError:
                return None

    def put(self, name: str, file: Path) -> None:
        with self._errors():
            self._files.makedirs(self._path, exist_ok=True)
            self._files.put_file(str(file), self._at(name))
        stored = self.size(name)
        if stored != file.stat().st_size:
            raise PtoolsError(
                f"{self.output}/{name} has {stored} of {file.stat().st_size:,} bytes",
                hint="run the same command again: finished shards are kept",
            )
        file.unlink()

    def write(self, name: str, data: bytes) -> None:
        with self._errors():
            self._files.makedirs(self._path, exist_ok=True)
            self._files.pipe_file(self._at(name), data)

    def read(self, name: str) -> bytes | None:
        with self._errors():
            try:
                return bytes(self._files.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

    def fetch(self, name: str) -> Path:
        self.workspace.mkdir(exist_ok=True)
        local = self.workspace / f".{name}.{os.getpid()}.part"
        with self._errors():
            self._files.get_file(self._at(name), str(local))
        return local

    def remove(self, name: str) -> None:
        with self._errors():
            if self._files.exists(self._at(name)):
                with suppress(FileNotFoundError):  # the last part on another machine was faster
                    self._files.rm_file(self._at(name))

    def commit(self) -> None:
        # The plan first: without it, other parts know that the set is whole.
        for name in sorted(filter(is_passing, self.names()), key=lambda name: name != PLAN):
            self.remove(name)
        for file in self.workspace.iterdir():
            file.unlink()
        with suppress(OSError):  # another packer may just have asked for the lock
            self.workspace.rmdir()

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (PtoolsError, KeyboardInterrupt):
            raise
        except Exception as error:  # each store has exceptions of its own
            raise PtoolsError(
                f"{self.output}: {type(error).__name__}: {error}",
                hint="check the address and the rights; then run the same command again",
            ) from error


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(url, use_listings_cache=False)  # others write there too
    except ImportError as error:
        raise UsageError(f"{url}: {error}", "install the package it names with pip") from error
    except (ValueError, OSError) as error:
        hint = "give a path, or an URL such as s3://bucket/x.lmdb"
        raise UsageError(f"{url}: {error}", hint) from error
    return files, path
