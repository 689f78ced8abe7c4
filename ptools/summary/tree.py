"""The registered layers of a model, in order, one for every path by which each can be reached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchinfo.torchinfo import apply_hooks


@dataclass(frozen=True)
class Node:
    """One registered module; the same module under two names is two nodes."""

    path: str
    module: nn.Module
    depth: int
    kernel: str | None = None


def nodes(model: nn.Module) -> list[Node]:
    """Parents before children, as registered: torchinfo's tree.

    `model` must be a stand-in. torchinfo's walk alone is used, without input and device, so that
    it neither runs nor moves the model: the statistics of `torchinfo.summary` take twice as long
    for each level of nesting. Parameters are hidden from it: its counts of them are not wanted,
    slow, and fail on pruned weights without data. It also fails on a `kernel_size` of its own
    kind; the walk is ours then.
    """
    try:
        with _parameters_hidden(model):
            layers, *_ = apply_hooks("", model, input_data=None, batch_dim=None)
    except Exception:
        return list(_walk(model, "", 0))
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
def _parameters_hidden(model: nn.Module) -> Iterator[None]:
    modules = list(model.modules())
    for module in modules:
        vars(module)["named_parameters"] = lambda **_: iter(())
    try:
        yield
    finally:
        for module in modules:
            del vars(module)["named_parameters"]


def _walk(module: nn.Module, path: str, depth: int) -> Iterator[Node]:
    yield Node(path, module, depth, _kernel(getattr(module, "kernel_size", None)))
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{path}.{name}" if path else name, depth + 1)


def _kernel(size: Any) -> str | None:
    if isinstance(size, int):
        return str(size)
    if isinstance(size, list | tuple) and all(isinstance(side, int) for side in size):
        return "x".join(map(str, size))
    return None
