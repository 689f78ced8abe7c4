"""Cold runs: which files a dataset reads, out of the page cache with them, and the proof."""

import ctypes
import mmap
import os
import stat
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch

from ptools.errors import PtoolsError

_DEPTH = 8  # of objects in objects
_PROBE = 100  # items of a collection; if none of them leads to a file, the others will not either
_FOLDER_FILES = 1_000_000  # that are taken of a folder of which no file was named
_TEXT = (str, bytes, Path)
_OPAQUE = (int, float, type(None), type, ModuleType, FunctionType, torch.Tensor)
_PYTHON = (".py", ".pyc", ".pyi")
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_SYSTEM = ("/dev/", "/proc/", "/sys/", "/usr/", "/etc/", *_INSTALLED)


def files_of(dataset: object) -> list[Path]:
    """The files that a dataset reads, as far as one sees without running it.

    They are named by its attributes, or lie in a folder named there of which no file is named, or
    are open or mapped in this process.
    """
    search = _Search()
    search.visit(dataset, (), _DEPTH)
    files = dict.fromkeys([*search.files, *search.unnamed(), *_opened()])
    return [file for file in files if file.suffix not in _PYTHON]


def evict(files: Iterable[Path]) -> int:
    """Take files out of the page cache, without root; the bytes of those that could be opened.

    What other processes have mapped stays.

    Raises:
        PtoolsError: the platform cannot do that.
    """
    if not hasattr(os, "posix_fadvise"):
        raise PtoolsError(
            "this platform cannot take single files out of the page cache",
            hint="leave --cold out, and restart the machine for a cold run",
        )
    count = 0
    for file in files:
        with suppress(OSError), file.open("rb", buffering=0) as opened:
            os.fdatasync(opened)  # what is not on the disk yet cannot be dropped
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            count += os.fstat(opened.fileno()).st_size
    return count


def resident(files: Iterable[Path]) -> float:
    """The share of the files' pages in the page cache; 0.0 without pages.

    Linux calls all pages of a file present for which one has no right to write (mincore(2)).
    """
    cached = total = 0
    for file in files:
        pages = _pages(file)
        cached += pages.count(1)
        total += len(pages)
    return cached / total if total else 0.0


class _Search:
    """A walk through the attributes of an object, for what names files and folders."""

    def __init__(self) -> None:
        self.files: dict[Path, None] = {}
        self._folders: dict[Path, None] = {}
        self._seen: dict[int, object] = {}  # keeps them, so that no other object gets the same id
        self._here = Path.cwd()

    def visit(self, value: Any, folders: tuple[Path, ...], depth: int) -> bool:
        """Whether a value leads to a file; relative paths may begin in one of the folders."""
        if isinstance(value, _TEXT):
            return self._is_named(os.fsdecode(value), folders)
        if isinstance(value, _OPAQUE) or not depth or id(value) in self._seen:
            return False
        if not isinstance(value, tuple):
            self._seen[id(value)] = value
        items = _items(value)
        if items is None:
            items = _attributes(value)
            folders = (*self._named_folders(items), *folders)
        found = False
        for index, item in enumerate(items):
            if index == _PROBE and not found:
                break
            found = self.visit(item, folders, depth - 1) or found
        return found

    def unnamed(self) -> Iterator[Path]:
        """All that is in the folders of which no file was named."""
        named = [str(file) for file in self.files]
        for folder in self._folders:
            if any(file.startswith(f"{folder}{os.sep}") for file in named):
                continue
            if folder.resolve() not in (
                self._here,
                *self._here.parents,
            ):  # "." and "/" may mean anything
                inside = (path for path in folder.rglob("*") if stat.S_ISREG(_mode(path)))
                yield from islice(inside, _FOLDER_FILES)

    def _is_named(self, text: str, folders: tuple[Path, ...]) -> bool:
        for folder in (self._here, *folders):
            path = folder / text
            if stat.S_ISREG(_mode(path)):
                self.files[path] = None
                return True
        return False

    def _named_folders(self, attributes: Iterable[object]) -> list[Path]:
        named = [value for value in attributes if isinstance(value, str | Path) and value]
        paths = [self._here / value for value in named]
        folders = [path for path in paths if stat.S_ISDIR(_mode(path))]
        self._folders.update(dict.fromkeys(folders))
        return folders


def _items(value: Any) -> Iterable[Any] | None:
    """What a collection holds, if it may hold paths; None if this is no collection."""
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    kind = type(value)  # an attribute of the object itself may be one that is computed
    if hasattr(kind, "columns") and hasattr(kind, "dtypes"):  # a DataFrame
        return [value[name] for name in value.columns]
    if hasattr(kind, "dtype") and hasattr(kind, "tolist"):  # an array or a column
        if getattr(value.dtype, "kind", "") not in "OSTU":
            return [getattr(value, "filename", None)]  # of a numpy.memmap
        items = value.tolist()
        return items if isinstance(items, list) else [items]
    return None


def _attributes(value: object) -> list[Any]:
    slots = getattr(type(value), "__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    return [*getattr(value, "__dict__", {}).values(), *(getattr(value, n, None) for n in names)]


def _opened() -> Iterator[Path]:
    """The files that this process has mapped or opened to read, but for those of programs."""
    for path in (*_mapped(), *_descriptors()):
        if not str(path).startswith(_SYSTEM) and stat.S_ISREG(_mode(path)):
            yield path


def _mapped() -> list[Path]:
    maps = Path("/proc/self/maps")
    lines = maps.read_text(errors="surrogateescape").splitlines() if maps.exists() else []
    named = [fields for line in lines if len(fields := line.split(maxsplit=5)) == 6]
    code = {path for _, access, *_, path in named if "x" in access}
    return [Path(path) for path in dict.fromkeys(path for *_, path in named) if path not in code]


def _descriptors() -> Iterator[Path]:
    folder = Path("/proc/self/fd")
    for link in folder.iterdir() if folder.exists() else ():
        with suppress(OSError):  # the one that listed the folder has gone
            flags = Path("/proc/self/fdinfo", link.name).read_text().split()[3]
            if int(flags, 8) & os.O_ACCMODE != os.O_WRONLY:
                yield link.readlink()


def _mode(path: Path) -> int:
    """The type and mode of a file; 0 if there is none, or the text cannot be a path."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def _pages(file: Path) -> bytes:
    """A byte for each page of a file, 1 if the page cache has it; empty if it cannot be opened."""
    libc = ctypes.CDLL(None)
    size = ctypes.c_size_t
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, size, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, size, ctypes.c_char_p]
    libc.munmap.argtypes = [ctypes.c_void_p, size]
    with suppress(OSError), file.open("rb") as opened:
        length = os.fstat(opened.fileno()).st_size
        address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, opened.fileno(), 0)
        if address == ctypes.c_void_p(-1).value:  # MAP_FAILED, as for an empty file
            return b""
        pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
        failed = libc.mincore(address, length, pages)
        libc.munmap(address, length)
        return b"" if failed else pages.raw
    return b""
