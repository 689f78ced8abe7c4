"""What differs on purpose in run B: what a program must not depend on if it is to repeat.

The environment's part is set before the interpreter starts, the rest in the process before the
program runs. Forked processes inherit both; spawned ones inherit the environment alone, and list
folders and read the clock as they are.
"""

from __future__ import annotations

import datetime
import functools
import gc
import os
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

NAMES = ("hash", "fs", "threads", "time")
DEFAULT = ("hash", "fs")

_HASH = "PYTHONHASHSEED"
_OMP = "OMP_NUM_THREADS"
_MKL = "MKL_NUM_THREADS"
_SHIFT = 86_400 + 12_345  # seconds: another day, hour, minute and second


def variables(names: Collection[str], cores: int) -> dict[str, str]:
    """The environment of a run that is perturbed in `names`; that of run A without any.

    What the user has set is part of how the program repeats: a hash seed is left alone, and
    thread counts change only when they are asked for.

    Args:
        cores: As many threads as OpenMP takes when it is not told.
    """
    chosen = {} if _hash_seed() else {_HASH: "2" if "hash" in names else "1"}
    if "threads" in names:
        chosen[_OMP] = _other_count(os.environ.get(_OMP), cores)
        if _MKL in os.environ:
            chosen[_MKL] = _other_count(os.environ[_MKL], cores)
    return chosen


def kept(names: Collection[str]) -> list[str]:
    """A sentence for each of `names` that could not be perturbed since the user has set it."""
    if "hash" not in names or not _hash_seed():
        return []
    return [
        f"{_HASH}={_hash_seed()} is set, and was left so in both runs: "
        f"to see whether the order of sets matters, run without it: env -u {_HASH} ptools repro ..."
    ]


def install(names: Collection[str]) -> None:
    """Perturb this process, before the program runs."""
    if "fs" in names:
        _shuffle_listings()
    if "time" in names:
        _shift_clock()


def _hash_seed() -> str:
    """The user's own one; empty if there is none or it is `random`."""
    given = os.environ.get(_HASH, "")
    return given if given.isdecimal() else ""


def _other_count(given: str | None, cores: int) -> str:
    first = (given or "").partition(",")[0].strip()  # one per level of nesting
    count = int(first) if first.isdecimal() else cores
    return "1" if count > 1 else "2"


def _shuffled(names: list[Any], name: Callable[[Any], str | bytes]) -> list[Any]:
    """Another order, which depends on the names alone and never is the one that they came in."""
    if len(names) < 2:
        return names

    def key(one: Any) -> tuple[int, bytes]:
        encoded = os.fsencode(name(one))
        return zlib.crc32(encoded), encoded

    shuffled = sorted(names, key=key)
    if all(new is old for new, old in zip(shuffled, names, strict=True)):
        shuffled.reverse()
    return shuffled


class _Listing:
    """What os.scandir returns: all entries, read at once, and so nothing to be closed."""

    def __init__(self, entries: list[os.DirEntry[Any]]) -> None:
        self._entries = iter(entries)

    def __iter__(self) -> Iterator[os.DirEntry[Any]]:
        return self

    def __next__(self) -> os.DirEntry[Any]:
        return next(self._entries)

    def __enter__(self) -> _Listing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._entries = iter(())


def _shuffle_listings() -> None:
    listdir, scandir = os.listdir, os.scandir

    def shuffled_listdir(path: Any = None) -> list[Any]:
        return _shuffled(listdir(path), lambda name: name)

    def shuffled_scandir(path: Any = None) -> _Listing:
        with scandir(path) as entries:
            return _Listing(_shuffled(list(entries), lambda entry: entry.name))

    _put(os, "listdir", shuffled_listdir)
    _put(os, "scandir", shuffled_scandir)
    os.supports_fd |= {os.listdir, os.scandir}  # shutil.rmtree asks


def _shift_clock() -> None:
    """Move wall-clock time; intervals, sleep and the times of files stay as they are.

    date.today and datetime.today read time.time.
    """
    now, now_ns, localtime = time.time, time.time_ns, time.localtime

    def shifted_time() -> float:
        return now() + _SHIFT

    def shifted_time_ns() -> int:
        return now_ns() + _SHIFT * 10**9

    def seconds() -> float:
        return now() + _SHIFT

    def fields() -> time.struct_time:
        return localtime(now() + _SHIFT)

    _put(time, "time", shifted_time)
    _put(time, "time_ns", shifted_time_ns)
    for name in ("localtime", "gmtime", "ctime"):
        _put(time, name, _given(getattr(time, name), 0, seconds))
    _put(time, "asctime", _given(time.asctime, 0, fields))
    _put(time, "strftime", _given(time.strftime, 1, fields))
    _shift_datetime("now")
    _shift_datetime("utcnow")


def _given(
    function: Callable[..., Any], position: int, moment: Callable[[], Any]
) -> Callable[..., Any]:
    """A function of `time` that is given the moment where it would take the present one."""

    def shifted(*args: Any) -> Any:
        if args[position:] not in ((), (None,)):
            return function(*args)
        return function(*args[:position], moment())

    return shifted


def _shift_datetime(name: str) -> None:
    """In the class itself: a class in its place would be another to isinstance and to pickle."""
    import ctypes

    kind = datetime.datetime
    original, shift = kind.__dict__[name], datetime.timedelta(seconds=_SHIFT)

    def shifted(cls: type[datetime.datetime], *args: Any, **kwargs: Any) -> datetime.datetime:
        moment: datetime.datetime = original.__get__(None, cls)(*args, **kwargs) + shift
        return moment

    # The class takes no assignment; its dictionary does.
    (members,) = gc.get_referents(kind.__dict__)
    members[name] = classmethod(functools.update_wrapper(shifted, original.__get__(None, kind)))
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))


class _BuiltIn:
    """In the place of a built-in function: as a class's attribute it does not become a method."""

    __name__: str

    def __init__(self, function: Callable[..., Any], original: Any, module: str) -> None:
        functools.update_wrapper(self, original)
        self.__module__ = module
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __reduce__(self) -> str:
        return self.__name__  # pickled by it, as the original is


def _put(module: Any, name: str, function: Callable[..., Any]) -> None:
    setattr(module, name, _BuiltIn(function, getattr(module, name), module.__name__))
