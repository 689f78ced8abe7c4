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

from ptools.debug.modules import Modules
from ptools.source import is_users

_MOST_LOOKS = 20  # each goes through all objects of the process
_CONTAINERS = (list, tuple, dict, set, frozenset, deque, CellType)


@dataclass(frozen=True)
class Variable:
    """`losses (list in train())`; `container` if it holds the object among others."""

    text: str
    container: bool


@dataclass(frozen=True)
class _Link:
    """How something holds the object: in a container of some type, in a dictionary by a key."""

    container: str = ""
    key: object = None


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
        todo = [thing]
        links = {id(thing): _Link()}
        for place in range(_MOST_LOOKS):
            if place == len(todo):
                return None
            held = todo[place]
            link = links[id(held)]
            known = self._names.get(id(held))
            if known is not None:
                return _variable(*known, link)
            referrers = gc.get_referrers(held)
            for one in referrers:
                if one is todo or one is referrers or id(one) in links:
                    continue
                if isinstance(one, _CONTAINERS):
                    links[id(one)] = _linked(one, held, link)
                    todo.append(one)
                elif name := self._name(one, held, link):
                    return _variable(name, "", link)
        return None

    def _know(self, items: Iterator[tuple[str, Any]], where: str) -> None:
        for name, value in items:
            self._names.setdefault(id(value), (name, where))

    def _name(self, owner: object, held: object, link: _Link) -> str | None:
        """What an owner calls what it holds, if that can be told."""
        if isinstance(owner, FunctionType) and owner.__globals__ is held:
            return str(link.key)
        if isinstance(owner, FunctionType | GeneratorType):
            return f"a variable of {owner.__qualname__}()"
        if isinstance(owner, type):
            return f"{owner.__name__}.{link.key}" if link.key is not None else None
        if isinstance(owner, FrameType):
            return None
        try:
            attributes = object.__getattribute__(owner, "__dict__")
        except AttributeError:
            return None
        name = link.key if attributes is held else _key(attributes, held)
        if name is None:
            return None
        title = self._modules.name(owner) if isinstance(owner, nn.Module) else type(owner).__name__
        return f"{title}.{name}"


def _linked(container: object, held: object, link: _Link) -> _Link:
    """The link of a container to what it holds; an object's own dictionary counts for none."""
    if isinstance(container, CellType):
        return link
    key = _key(container, held) if isinstance(container, dict) else None
    return _Link(link.container or type(container).__name__, key)


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
