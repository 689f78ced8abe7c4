"""The registered layers of a model, in order, one for every path by which each can be reached."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torchinfo
from torch import nn


@dataclass(frozen=True)
class Node:
    """One registered module; the same module under two names is two nodes."""

    path: str
    module: nn.Module
    depth: int
    kernel: str | None = None


def nodes(model: nn.Module) -> list[Node]:
    """Parents before children, as registered: torchinfo's tree.

    `model` must be a stand-in. Without `input_size`, `input_data` and `device` torchinfo neither
    runs nor moves it. Parameters are put aside meanwhile: torchinfo's counts of them are not
    wanted, slow, and fail on pruned weights without data. It would not end on a module that
    contains itself; for that one, and for whatever else it can't take, the walk is ours.
    """
    if _contains_itself(model, ()):
        return list(_walk(model, "", ()))
    try:
        with _parameters_aside(model):
            layers = torchinfo.summary(model, verbose=0, depth=sys.maxsize).summary_list
    except Exception:
        return list(_walk(model, "", ()))
    found: list[Node] = []
    ancestors: list[str] = []
    for layer in layers:
        del ancestors[layer.depth :]
        path = ".".join([*ancestors[1:], layer.var_name]) if layer.depth else ""
        ancestors.append(layer.var_name)
        found.append(Node(path, layer.module, layer.depth, _kernel(layer.kernel_size)))
    return found


def paths_of(found: Iterable[Node]) -> dict[int, list[str]]:
    """Every path of each module, by the module's id."""
    paths: dict[int, list[str]] = {}
    for node in found:
        paths.setdefault(id(node.module), []).append(node.path)
    return paths


@contextlib.contextmanager
def _parameters_aside(model: nn.Module) -> Iterator[None]:
    aside = [(vars(module), vars(module).get("_parameters")) for module in model.modules()]
    try:
        for attributes, _ in aside:
            attributes["_parameters"] = {}
        yield
    finally:
        for attributes, parameters in aside:
            attributes["_parameters"] = parameters


def _contains_itself(module: nn.Module, above: tuple[int, ...]) -> bool:
    above = (*above, id(module))
    return any(id(c) in above or _contains_itself(c, above) for c in module.children())


def _walk(module: nn.Module, path: str, above: tuple[int, ...]) -> Iterator[Node]:
    yield Node(path, module, len(above), _kernel(getattr(module, "kernel_size", None)))
    above = (*above, id(module))
    for name, child in module._modules.items():
        if child is not None and id(child) not in above:
            yield from _walk(child, f"{path}.{name}" if path else name, above)


def _kernel(size: Any) -> str | None:
    if isinstance(size, int):
        return str(size)
    if isinstance(size, list | tuple) and all(isinstance(side, int) for side in size):
        return "x".join(map(str, size))
    return None
