"""The variable that keeps an object alive, by the name that the program has for it."""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import CO_OPTIMIZED
from types import CellType, FrameType, FunctionType, GeneratorType
from typing import Any

from torch import nn

from ptools.program.modules import Modules
from ptools.source import is_users

_MOST_LOOKS = 8  # each goes through all objects of the process
_MOST_HOLDERS = 50  # of one object
_CONTAINERS = (list, tuple, dict, set, frozenset, deque, CellType)


@dataclass(frozen=True)
class Variable:
    """`losses (list in train())`; `container` if it holds the object among others."""

    text: str
    container: bool


@dataclass(frozen=True)
class _Link:
    """How something holds the object.

    Args:
        container: the type of the outermost container on the way to the object.
        key: what a dictionary calls the thing that it holds.
        inner: how that thing holds the object.
    """

    container: str = ""
    key: object = None
    inner: _Link | None = None


_Links = dict[int, dict[int, _Link]]  # by the ids of a holder and of the object


class Variables:
    """What the program's variables hold at this moment."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._names: dict[int, tuple[str, str]] = {}  # by the id of the value: name and where
        for frame in _users_frames():
            self._know(_locals_of(frame), f"in {frame.f_code.co_qualname}()")
            self._know(_items(frame.f_globals), _scope(frame.f_globals.get("__name__")))
        for title, module in list(sys.modules.items()):
            if title == "__main__" or is_users(getattr(module, "__file__", None) or "<"):
                self._know(_items(module.__dict__), _scope(title))

    def that_keeps(self, thing: object) -> Variable | None:
        """The nearest variable that holds the object, itself or in containers and attributes."""
        return self.that_keep([thing]).get(id(thing))

    def that_keep(self, things: list[Any]) -> dict[int, Variable]:
        """The same for many objects, by their ids: it takes hardly longer than for one."""
        found: dict[int, Variable] = {}
        level = things
        links: _Links = {id(thing): {id(thing): _Link()} for thing in things}
        seen = {id(thing): {id(thing)} for thing in things}
        for _ in range(_MOST_LOOKS):
            for held, ways in links.items():
                if held in self._names:
                    for thing, link in ways.items():
                        found.setdefault(thing, _variable(*self._names[held], link))
            level = [one for one in level if links[id(one)].keys() - found.keys()]
            if not level:
                break
            level, links = self._look(level, links, seen, found, ours=things)
        return found

    def _look(
        self,
        level: list[Any],
        links: _Links,
        seen: dict[int, set[int]],
        found: dict[int, Variable],
        ours: list[Any],
    ) -> tuple[list[Any], _Links]:
        """What holds the things of one level: variables are found, containers the next level."""
        holders: dict[int, Any] = {}
        further: _Links = {}
        referrers = gc.get_referrers(*level)
        for one in referrers:
            if one is ours or one is level or isinstance(one, FrameType):
                continue
            for held in gc.get_referents(one):
                for thing, link in links.get(id(held), {}).items():
                    if thing in found or id(one) in seen[thing]:
                        continue
                    if not isinstance(one, _CONTAINERS):
                        if variable := self._attribute(one, held, link):
                            found[thing] = variable
                    elif len(seen[thing]) < _MOST_HOLDERS:
                        seen[thing].add(id(one))
                        further.setdefault(id(one), {})[thing] = _linked(one, held, link)
                        holders[id(one)] = one
        return list(holders.values()), further

    def _know(self, items: Iterator[tuple[str, Any]], where: str) -> None:
        for name, value in items:
            self._names.setdefault(id(value), (name, where))

    def _attribute(self, owner: object, held: object, link: _Link) -> Variable | None:
        """The variable of an owner that holds something, if it can be told."""
        inner = link.inner or link  # of a dictionary of names, which counts for no container
        if isinstance(owner, FunctionType) and owner.__globals__ is held:
            return _variable(str(link.key), "", inner)
        if isinstance(owner, FunctionType | GeneratorType):
            return _variable(f"a variable of {owner.__qualname__}()", "", link)
        if isinstance(owner, type):
            name = f"{owner.__name__}.{link.key}"
            return None if link.inner is None else _variable(name, "", link.inner)
        try:
            attributes = object.__getattribute__(owner, "__dict__")
        except AttributeError:
            return None
        title = self._modules.name(owner) if isinstance(owner, nn.Module) else type(owner).__name__
        if attributes is held:
            return _variable(f"{title}.{link.key}", "", inner)
        name = _key(attributes, held)
        return None if name is None else _variable(f"{title}.{name}", "", link)


def _linked(container: object, held: object, link: _Link) -> _Link:
    """The link of a container to what it holds."""
    if isinstance(container, CellType):
        return link
    if not isinstance(container, dict):
        return _Link(type(container).__name__)
    return _Link(type(container).__name__, _key(container, held), link)


def _variable(name: str, where: str, link: _Link) -> Variable:
    text = f"{link.container} {where}".strip()
    return Variable(f"{name} ({text})" if text else name, bool(link.container))


def _key(values: Mapping[Any, object], wanted: object) -> Any:
    return next((key for key, value in list(values.items()) if value is wanted), None)


def _scope(module: str | None) -> str:
    return "of the script" if module in ("__main__", None) else f"of module {module}"


def _items(namespace: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return iter(list(namespace.items()))


def _users_frames() -> Iterator[FrameType]:
    """The running functions that are not torch's or ours, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def _locals_of(frame: FrameType) -> Iterator[tuple[str, Any]]:
    """A function's variables, without leaving it the copy that Python before 3.13 makes."""
    if not frame.f_code.co_flags & CO_OPTIMIZED:  # a module's: these are its globals
        return iter(())
    before = {id(one) for one in gc.get_referents(frame)}
    values = frame.f_locals
    items = list(values.items())
    if isinstance(values, dict) and id(values) not in before:
        values.clear()
    return iter(items)
