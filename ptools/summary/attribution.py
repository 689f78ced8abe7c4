"""Who is running: the module by its path, and the line of the user that called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ptools.source import Line, user_line
from ptools.summary.report import Shape
from ptools.summary.tree import Node, paths_of


@dataclass(slots=True)
class Visit:
    """The calls of one module by one path; shapes are those of the first call."""

    calls: int = 0
    inputs: tuple[Shape, ...] = ()
    outputs: tuple[Shape, ...] = ()


class ModuleStack:
    """Follows which module is running, under the path by which it was reached."""

    def __init__(self, found: Sequence[Node]) -> None:
        self.paths = paths_of(found)
        self.stack: list[str] = []
        self.visits: dict[str, Visit] = {}
        for module in {id(node.module): node.module for node in found}.values():
            if not isinstance(module, torch.jit.ScriptModule):  # refuses hooks
                module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True)
                module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        path = self._path(module)
        self.stack.append(path)
        if torch._C._current_autograd_node() is not None:
            return  # activation checkpointing runs it again; that is no new call of the model
        visit = self.visits.get(path)
        if visit is None:
            visit = self.visits[path] = Visit()
        visit.calls += 1
        if visit.calls == 1:
            only = args[0] if len(args) == 1 and not kwargs else (args, kwargs)
            visit.inputs = _shapes(only)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        visit = self.visits.get(self.stack.pop())
        if visit is not None and not visit.outputs:
            visit.outputs = _shapes(output)

    def _path(self, module: nn.Module) -> str:
        paths = self.paths[id(module)]
        if len(paths) > 1 and self.stack:
            inside = f"{self.stack[-1]}." if self.stack[-1] else ""
            return next((path for path in paths if path.startswith(inside)), paths[0])
        return paths[0]


class Attribution:
    """Whose work the current operation is: a backward operation belongs where its forward ran.

    An autograd node is made just before its operation is dispatched, so the newest sequence
    number names it; the engine shows the same number while the node runs backward.
    """

    def __init__(self, modules: ModuleStack) -> None:
        self.modules = modules
        self._owner: dict[int, tuple[str, Line | None]] = {}

    def current(self, frame: FrameType) -> tuple[str, Line | None, bool]:
        """Module path, the user's source line, and whether this is in backward."""
        node = torch._C._current_autograd_node()
        stack = self.modules.stack
        if node is None or stack:
            path, line = stack[-1] if stack else "", user_line(frame)
            if torch.is_grad_enabled():
                number = torch._C._autograd._get_sequence_nr() - 1
                self._owner.setdefault(number, (path, line))
            return path, line, node is not None
        return *self._owner.get(node._sequence_nr(), ("", None)), True


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Tensors in nested containers, and in the attributes of objects such as dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module | type):
            yield from (t for t in vars(leaf).values() if isinstance(t, torch.Tensor))


def _shapes(value: Any) -> tuple[Shape, ...]:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape),)
    return tuple(tuple(t.shape) for t in tensors_in(value))
