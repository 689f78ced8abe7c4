"""A function replaced by one that passes on what it returns."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from collections.abc import Callable
from types import FrameType, MethodType
from typing import Any, Protocol

from ptools.repro.suspects.sources import GENERATORS, NOTHING, Source

WRAPPER = __file__  # the file of the frame that stands below each call of a watched function


class Note(Protocol):
    """Where the values go that one line of the program takes in."""

    def add(self, value: Any) -> None:
        """It took in another."""


class Notes(Protocol):
    """Who is told what the watched functions return."""

    seeded: set[str]

    def note_at(self, watched: Watched, frame: FrameType, value: Any) -> Note | None:
        """The note for the line that calls from `frame`; None if it is not of interest."""


class Watched:
    """In the place of a function. As a class's attribute it does not become a method."""

    __name__: str

    def __init__(self, notes: Notes, source: Source, original: Any) -> None:
        functools.update_wrapper(self, original)
        self.source = source
        self.sites: dict[tuple[int, int], Any] = {}  # notes, by where the call stands
        self._notes = notes
        self.original = original
        self._call = original.__func__ if isinstance(original, classmethod) else original
        self._taken = source.taken
        self._generator = GENERATORS.get(source.what)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._call(*args, **kwargs)
        frame = sys._getframe(1)
        value = self._taken(args, kwargs, result)
        note = self.sites.get((id(frame.f_code), frame.f_lasti))
        if note is None and value is not NOTHING:
            note = self._notes.note_at(self, frame, value)
        if note is not None and value is not NOTHING:
            note.add(value)
        if self._generator is not None:
            self._notes.seeded.add(self._generator)
        return result

    def __reduce__(self) -> str:
        return self.__name__  # pickled by its name, and not copied


class _Method(Watched):
    """In the place of a function that becomes a method, as those written in Python do."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)


def watch(
    notes: Notes, source: Source, owner: Any, name: str
) -> tuple[Watched, Callable[[], None]]:
    """Watch a function where it stands: in a module, a class or an object; and what ends that."""
    # As a class has it, not as a method that is bound to the class.
    original = vars(owner).get(name, getattr(owner, name))
    binds = hasattr(original, "__get__") and not isinstance(original, MethodType)
    watched = (_Method if binds else Watched)(notes, source, original)
    watched.__module__ = getattr(owner, "__name__", "")
    of_class = type(original).__name__ in ("classmethod", "classmethod_descriptor")
    return watched, _swap(owner, name, classmethod(watched) if of_class else watched)


def _swap(owner: Any, name: str, new: Any) -> Callable[[], None]:
    """Replace an attribute of a module, a class or an object; what puts it back is returned."""
    members = vars(owner)
    there, old = name in members, members.get(name)
    put = _put_in_type if isinstance(owner, type) else setattr
    put(owner, name, new)
    return lambda: put(owner, name, old) if there else delattr(owner, name)


def _put_in_type(owner: type, name: str, value: Any) -> None:
    try:
        setattr(owner, name, value)
    except TypeError:
        # A class written in C, as datetime is. One put in its place would be another class to
        # pickle, sqlite3 and `type(x) is datetime`; this way it stays the one it is.
        gc.get_referents(vars(owner))[0][name] = value
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(owner))
