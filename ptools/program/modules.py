"""Which module is being called, and what it is called in the user's model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


class Modules:
    """The modules that are being called, innermost last, for each thread.

    `nn.Module.__call__` is replaced while `watching`: torch's global hooks would cost each call
    microseconds, and are left out when an exception ends it.
    """

    def __init__(self) -> None:
        self._here = threading.local()
        # In the order in which they were called first, which is the same in each run.
        self._roots: weakref.WeakKeyDictionary[nn.Module, None] = weakref.WeakKeyDictionary()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the stack while the block runs."""
        before = nn.Module.__call__
        here, roots = self._here, self._roots
        # A constant to torch.compile, which then never sees the stack, that it cannot trace.
        compiling = torch.compiler.is_dynamo_compiling

        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if compiling():
                return before(self, *args, **kwargs)
            try:
                stack = here.stack
            except AttributeError:
                stack = here.stack = []
            if not stack:
                roots.setdefault(self)
            stack.append(self)
            try:
                return before(self, *args, **kwargs)
            finally:
                stack.pop()

        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = before  # type: ignore[method-assign]

    def current(self) -> nn.Module | None:
        """The innermost module that is being called in this thread."""
        try:
            return self._here.stack[-1]  # type: ignore[no-any-return]
        except (AttributeError, IndexError):
            return None

    def add(self, model: nn.Module) -> None:
        """Know a model by name before it is called."""
        self._roots.setdefault(model)

    def roots(self) -> list[nn.Module]:
        """The modules that were called from outside any other and are alive, largest first.

        So a part that was also called by itself is named within the whole.
        """
        return sorted(self._roots, key=lambda root: -sum(1 for _ in root.modules()))

    def name(self, module: nn.Module | None) -> str:
        """`Net.blocks.0.act` for a module of a known model, else its type; empty for None."""
        if module is None:
            return ""
        for root in self.roots():
            for path, child in root.named_modules():
                if child is module:
                    return _shown(root, path)
        return type(module).__name__

    def parameter_name(self, wanted: object) -> str:
        """`Net.blocks.0.weight` for a parameter or buffer of a known model; empty if unknown."""
        for root in self.roots():
            for named in (root.named_parameters(), root.named_buffers()):
                for path, tensor in named:
                    if tensor is wanted:
                        return _shown(root, path)
        return ""

    def names_of(self, parameters: Sequence[torch.Tensor]) -> str:
        """`Net.fc.weight and of 3 more`; a parameter of no known model by its shape."""
        first, more = parameters[0], len(parameters) - 1
        name = self.parameter_name(first) or f"a parameter {tuple(first.shape)}"
        return f"{name} and of {more} more" if more else name

    def name_of_memory(self, tensor: torch.Tensor) -> str:
        """The name of a parameter or buffer that has its numbers where the tensor has them."""
        wanted = _memory(tensor)
        for root in self.roots():
            for one in (*root.parameters(), *root.buffers()):
                if wanted is not None and _memory(one) == wanted:
                    return self.parameter_name(one)
        return ""


def _memory(tensor: torch.Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse tensors have none of their own
        return None


def _shown(root: nn.Module, path: str) -> str:
    """The path without the wrappers of DDP, torch.compile and FSDP."""
    path += "."
    while path.startswith(_WRAPPERS):
        head, _, path = path.partition(".")
        root = getattr(root, head)
    for wrapper in _WRAPPERS[1:]:
        path = path.replace(f".{wrapper}", ".")
    return f"{type(root).__name__}.{path}".rstrip(".")
