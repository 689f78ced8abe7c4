"""In the program's process: keep what it is about to write over, and note what it makes.

Only below the folder that the program starts in, where scripts put their outputs: other places
(caches, data sets, /tmp) are shared with other programs, and may be too large to be put aside.
Forked processes are watched too; spawned ones and other programs are not.
"""

from __future__ import annotations

import functools
import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from ptools.imports import after_import
from ptools.repro.outputs.records import KEPT, OURS, add, copy_name

LARGEST = 1 << 30  # bytes of a file that is copied before it is written over

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Python is not told of what these write: the module, the function, and which argument is a path.
_UNSEEN = (
    ("torch.serialization", "_open_zipfile_writer_file.__init__", 1),
    ("torch.jit._serialization", "save", 1),
    ("safetensors", "serialize_file", 1),
    ("cv2", "imwrite", 0),
)
_HIDDEN = os.path.expanduser("~/.")  # noqa: PTH111 -- Path.home() fails where there is none
_SCRATCH = ("pymp-", "torch_", "torchinductor_")  # of multiprocessing and torch
# Caches among them.
_SHARED = ("/dev/", "/proc/", "/sys/", sys.prefix, _HIDDEN)


def watch_writes(folder: Path) -> None:
    """Note in `folder` each file below the current folder that is made, changed or removed.

    Args:
        folder: What `Outputs.before` returned.
    """
    writes = _Writes(folder)
    handler_of: dict[str, Callable[..., None]] = {
        "open": writes.opened,
        "os.remove": writes.removed,
        "os.rmdir": writes.removed,
        "os.rename": writes.renamed,
        "os.mkdir": writes.made,
        "os.link": writes.linked,
        "os.symlink": writes.linked,
        "os.truncate": writes.changed,
        "os.utime": writes.changed,
        "sqlite3.connect": writes.changed,
    }

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        handler = handler_of.get(event)
        if handler is not None:
            with suppress(Exception):  # an error of ours would become the program's
                handler(*arguments)

    sys.addaudithook(hook)
    for module, function, position in _UNSEEN:
        after_import(module, functools.partial(_announce, function, position))


class _Writes:
    """What one process, or one that it forked, is about to do to files."""

    def __init__(self, folder: Path) -> None:
        self._root = Path.cwd().resolve()
        scratch = tempfile.gettempdir() + os.sep
        self._shared = _SHARED if f"{self._root}/".startswith(scratch) else (*_SHARED, scratch)
        self._folder = folder
        self._seen: set[Path] = set()
        self._begin_lock()
        os.register_at_fork(after_in_child=self._begin_lock)

    def opened(self, path: Any, mode: object, flags: int) -> None:
        """Called at each opening, for reading too."""
        if flags & _WRITING:
            self.changed(path)

    def changed(self, path: Any, *_: object) -> None:
        if not isinstance(path, int):  # the opening of a descriptor was seen
            self._before(Path(os.fsdecode(path)).resolve(), loses=False)

    def removed(self, path: Any, at: int = -1) -> None:
        self._before(_named(path, at), loses=True)

    def made(self, path: Any, mode: int, at: int = -1) -> None:
        self._before(_named(path, at), loses=False)

    def linked(self, source: Any, path: Any, *at: int) -> None:
        self._before(_named(path, at[-1] if at else -1), loses=False)

    def renamed(self, source: Any, target: Any, source_at: int, target_at: int) -> None:
        self._before(_named(source, source_at), loses=False)
        self._before(_named(target, target_at), loses=True)

    def _begin_lock(self) -> None:
        self._lock = threading.RLock()  # one thread must not write while another yet copies

    def _before(self, path: Path, loses: bool) -> None:
        if path in self._seen or "__pycache__" in path.parts:
            return
        with self._lock:
            if path in self._seen:
                return
            inside = path.is_relative_to(self._root)
            if OURS in str(path.relative_to(self._root) if inside else path):
                return
            if inside:
                self._keep(path, loses)
            elif not str(path).startswith(self._shared) and not path.name.startswith(_SCRATCH):
                self._note(path, "elsewhere")
            self._seen.add(path)  # now: Ctrl-C may have come

    def _keep(self, path: Path, loses: bool) -> None:
        try:
            status = path.lstat()
        except FileNotFoundError:
            self._note(path, "made")
            return
        signature = [status.st_size, status.st_mtime_ns, status.st_ino]
        if stat.S_ISDIR(status.st_mode):
            self._note(path, "folder", mode=stat.S_IMODE(status.st_mode))
            for below in [] if loses else path.iterdir():  # all of it moves
                self._keep(below, loses)
        elif stat.S_ISLNK(status.st_mode):
            self._note(path, "link", target=os.readlink(path))  # noqa: PTH115
        elif stat.S_ISREG(status.st_mode):
            failed = self._copy(path, status, loses)
            if failed:
                self._note(path, "lost", why=failed, signature=signature)
            else:
                self._note(path, "kept", copy=copy_name(path), signature=signature)

    def _copy(self, path: Path, status: os.stat_result, loses: bool) -> str:
        """Keep a file's content as it is now; why not, if that cannot be."""
        kept = self._folder / KEPT / copy_name(path)
        if kept.exists():
            return ""
        try:
            if loses and status.st_nlink == 1:
                with suppress(OSError):  # on another disk
                    os.link(path, kept)
                    return ""
            if status.st_size > min(LARGEST, shutil.disk_usage(kept.parent).free // 2):
                return "it is too large to be copied"
            temporary = kept.with_name(f"{kept.name}.{os.getpid()}")
            shutil.copy2(path, temporary)
            temporary.replace(kept)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def _note(self, path: Path, what: str, **more: object) -> None:
        add(self._folder, {"path": str(path), "what": what, **more})


def _named(path: Any, at: int) -> Path:
    """The name itself, which may be a link's, in a folder that may be given as a descriptor."""
    given = Path(os.fsdecode(path))
    if at >= 0 and not given.is_absolute():
        given = Path(f"/proc/self/fd/{at}") / given
    return given.parent.resolve() / given.name


def _announce(name: str, position: int, module: ModuleType) -> None:
    """Have a function tell of the file that it opens, as Python's own do."""
    *owners, attribute = name.split(".")
    owner: Any = functools.reduce(getattr, owners, module)
    function = getattr(owner, attribute)

    @functools.wraps(function)
    def announced(*arguments: Any, **named: Any) -> Any:
        path = arguments[position] if len(arguments) > position else named.get("filename")
        if isinstance(path, str | bytes | os.PathLike):
            sys.audit("open", os.fspath(path), "wb", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        return function(*arguments, **named)

    setattr(owner, attribute, announced)
