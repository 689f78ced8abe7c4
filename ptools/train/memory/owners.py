"""By which names a program knows its tensors."""

from __future__ import annotations

import gc
import sys
import sysconfig
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from inspect import CO_OPTIMIZED
from types import CellType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from ptools.program.modules import Modules
from ptools.source import is_users
from ptools.train.memory.storages import Named, Storages, all_of

PARAMETER, BUFFER, GRADIENT = "parameter", "buffer", "gradient"
STATE, VARIABLE, GRAPH, OTHER = "optimizer state", "variable", "saved for backward", "other"

_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_MOST = 200_000  # objects to look at
_DEEPEST = 6  # containers and attributes between a variable and a tensor
_CLOSED = (ModuleType, FunctionType, type, FrameType, str, bytes, int, float, torch.Tensor)
_OF_MODULES = ("_parameters", "_buffers", "_modules")
_Named = Iterator[tuple[str, str, torch.Tensor]]


def named_tensors() -> _Named:
    """Kind, name and tensor: of models, then of optimizers, of variables, and of graphs."""
    models: list[tuple[str, nn.Module]] = list(_models())
    names: dict[int, str] = {}
    for title, model in models:
        for path, one in model.named_parameters():
            names[id(one)] = f"{title}.{path}"
            yield PARAMETER, names[id(one)], one
            if one.grad is not None:
                yield GRADIENT, f"gradient of {names[id(one)]}", one.grad
        yield from ((BUFFER, f"{title}.{path}", one) for path, one in model.named_buffers())
    for optimizer in all_of(torch.optim.Optimizer):
        yield from _states(optimizer, names)
    roots = [*_attributes(models), *_variables()]
    yield from ((VARIABLE, name, one) for name, one in _within(roots))


def saved_tensors() -> _Named:
    """What graphs keep for a backward, which may be known to no variable."""
    ends = [node for one in all_of(torch.Tensor) if (node := _end(one)) is not None]
    seen, waiting = set(ends), deque(ends)
    while waiting and len(seen) < _MOST:
        node = waiting.popleft()
        for name in [one for one in dir(node) if one.startswith("_raw_saved_")]:
            saved = getattr(node, name)
            for one in saved if isinstance(saved, list | tuple) else [saved]:
                # Not `_saved_...`: that would have a checkpoint run again.
                tensor = getattr(one, "data", None)
                if isinstance(tensor, torch.Tensor):
                    yield GRAPH, f"saved by {node.name()}", tensor
        after = {one for one, _ in node.next_functions if one is not None} - seen
        seen |= after
        waiting += after


def holders(tensors: Iterable[torch.Tensor]) -> dict[int, str]:
    """What holds each tensor that no variable leads to, by the tensor's id."""
    wanted = list(tensors)
    ids = {id(one) for one in wanted}
    found: dict[int, str] = {}
    for holder in gc.get_referrers(*wanted):
        if holder is wanted or isinstance(holder, FrameType | Named):
            continue
        for held in gc.get_referents(holder):
            if id(held) in ids:
                found.setdefault(id(held), _held_by(holder, held))
    return found


def _held_by(holder: object, held: object) -> str:
    if isinstance(holder, CellType):
        return "a variable of an inner function"
    kind = type(holder).__name__
    if isinstance(holder, dict):
        return f"a dict, as {_key(holder, held)!r:.40}"
    key = _key(getattr(holder, "__dict__", {}), held)
    return f"a {kind}" if key is None else f"{kind}.{key}"


def _key(values: Mapping[Any, object], wanted: object) -> Any:
    return next((key for key, value in list(values.items()) if value is wanted), None)


def _end(tensor: Any) -> Any:
    """The node that made a tensor, if one did."""
    try:
        return tensor.grad_fn
    except RuntimeError:  # a view that must not be used any more
        return None


def _models() -> Iterator[tuple[str, nn.Module]]:
    """Models, not within another, with their types' names: `Net`, and `Net (2)` for the next."""
    modules: list[Any] = all_of(nn.Module)
    inner = {id(child) for one in modules for child in one.__dict__.get("_modules", {}).values()}
    known, count = Modules(), Counter[str]()
    for model in modules:
        if id(model) not in inner and "_modules" in model.__dict__:
            known.add(model)
            title = type(model).__name__
            count[title] += 1
            yield title if count[title] == 1 else f"{title} ({count[title]})", model


def _states(optimizer: Any, names: Mapping[int, str]) -> _Named:
    title = type(optimizer).__name__
    for parameter, state in list(getattr(optimizer, "state", {}).items()):
        owner = names.get(id(parameter), "a parameter of no model")
        for key, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, torch.Tensor):
                yield STATE, f"{title} {key} of {owner}", value


def _attributes(models: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, Any]]:
    for title, model in models:
        for path, module in model.named_modules():
            for name, value in list(vars(module).items()):
                if name not in _OF_MODULES:
                    yield ".".join(filter(None, (title, path, name))), value


def _variables() -> Iterator[tuple[str, Any]]:
    """Variables of the user's functions that run in any thread, then those of modules."""
    for frame in sys._current_frames().values():
        at: FrameType | None = frame
        while at is not None:
            if is_users(at.f_code.co_filename) and at.f_code.co_flags & CO_OPTIMIZED:
                where = at.f_code.co_qualname
                yield from ((f"{name} in {where}()", value) for name, value in _locals_of(at))
            at = at.f_back
    for title, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or "<"
        if title == "__main__" or (is_users(file) and not file.startswith(_INSTALLED)):
            prefix = "" if title == "__main__" else f"{title}."
            yield from ((f"{prefix}{name}", value) for name, value in list(vars(module).items()))


def _locals_of(frame: FrameType) -> list[tuple[str, Any]]:
    """Without leaving the function the copy that Python before 3.13 makes: it keeps tensors."""
    before = {id(one) for one in gc.get_referents(frame)}
    values = frame.f_locals
    items = list(values.items())
    if isinstance(values, dict) and id(values) not in before:
        values.clear()
    return items


def _within(roots: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in variables, and in the containers and attributes of these, nearest first."""
    waiting = deque((name, value, 0) for name, value in roots)
    seen: set[int] = set()
    while waiting and len(seen) < _MOST:
        name, value, depth = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if issubclass(type(value), torch.Tensor):
            yield name, value
        elif depth < _DEEPEST:
            waiting += ((inner, part, depth + 1) for inner, part in _parts(name, value))


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    name, _, where = name.partition(" in ")
    where = where and f" in {where}"
    if issubclass(type(value), dict):
        yield from ((f"{name}[{key!r:.40}]{where}", part) for key, part in list(value.items()))
    elif issubclass(type(value), list | tuple | set | frozenset | deque):
        yield from ((f"{name}[{at}]{where}", part) for at, part in enumerate(list(value)))
    elif not issubclass(type(value), (*_CLOSED, Storages, nn.Module, torch.optim.Optimizer)):
        attributes = getattr(type(value), "__dictoffset__", 0) and vars(value)
        yield from ((f"{name}.{key}{where}", part) for key, part in [*(attributes or {}).items()])
