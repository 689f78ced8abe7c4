"""The first prover: watch a real forward, operation by operation, whatever its Python does."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves, tree_map_only

from ptools.dispatch import DispatchMode, name_of
from ptools.fusion.trace import SMALL, ModuleCall, Op, Site, Trace, Value, by_name
from ptools.source import is_users

_Key = tuple[Any, ...]


Watch = Callable[[Op, list[torch.Tensor], list[torch.Tensor]], None]


def observe(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], watch: Watch | None = None
) -> tuple[Trace, Any]:
    """Run the forward without gradients; its trace, and what it returned.

    `watch` is shown each operation with the tensors that it read and made.
    """
    args, kwargs = tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    recorder = _Recorder(model, watch)
    with torch.no_grad(), recorder.hooks(), recorder:
        result = model(*args, **kwargs)
    leaves = (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
    returned = {recorder.value(leaf) for leaf in leaves} | recorder.alive() | recorder.read
    return Trace(recorder.ops, returned, recorder.calls, recorder.deciding), result


class _Recorder(DispatchMode):
    """Tells values apart by storage, version and geometry, so that views and writes are seen."""

    def __init__(self, model: nn.Module, watch: Watch | None) -> None:
        super().__init__()
        self.watch = watch
        self.ops: list[Op] = []
        self.calls: list[ModuleCall] = []
        self.read: set[Value] = set()  # by Python
        self.deciding: set[str] = set()
        self._names = {id(module): name for name, module in model.named_modules()}
        self._values: dict[_Key, Value] = {}
        self._writes: Counter[int] = Counter()
        # A weak reference keeps a storage's address from being given to another.
        self._storages: dict[int, StorageWeakRef] = {}
        self._open: list[tuple[nn.Module, int, frozenset[Site]]] = []
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            value = self.value(tensor)
            value.weight, value.constant, value.weights = name, True, frozenset((name,))
            value.data = tensor.detach()
        self._state = frozenset(self._storages)

    def value(self, tensor: torch.Tensor) -> Value:
        """The value that a tensor has now."""
        key = self._key(tensor)
        if key not in self._values:
            self._values[key] = Value(tuple(tensor.shape), tensor.dtype)
        return self._values[key]

    def alive(self) -> set[Value]:
        """Values that someone still holds, whether in the result, an attribute or a hook's list."""
        return {
            value
            for (address, *rest), value in self._values.items()
            if rest and rest[0] == self._writes[address] and not value.constant
            if not self._storages[address].expired()
        }

    def _result(self, tensor: torch.Tensor, inputs: tuple[Value, ...]) -> Value:
        """A new value, though a view leads back to a geometry that was there before."""
        known = self._values.get(key := self._key(tensor))
        if known is not None and (known in inputs or known.constant):
            return known
        self._values[key] = Value(tuple(tensor.shape), tensor.dtype)
        return self._values[key]

    def _key(self, tensor: torch.Tensor) -> _Key:
        if tensor.layout is not torch.strided:
            return (id(tensor),)
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._storages:
            self._storages[address] = StorageWeakRef(storage)
        geometry = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        return (address, self._writes[address], *geometry)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        named = by_name(func, args, kwargs)
        arguments = tree_map_only(torch.Tensor, self.value, named)
        result = func(*args, **kwargs)
        targets = tree_leaves([named[name] for name in _written(func)])
        written = {self._key(each)[0] for each in targets if torch.is_tensor(each)}
        self._writes.update(written)
        inputs = tuple(leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Value))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        outputs = tuple(self._result(tensor, inputs) for tensor in tensors)
        if not outputs:
            self._note_read(inputs)
        elif not set(outputs) <= set(inputs):
            self.ops.append(Op(name_of(func), len(self.ops), arguments, inputs, outputs))
            if all(value.constant for value in inputs) and self._repeats(func, written):
                _make_constant(inputs, outputs, tensors)
            if self.watch is not None:
                read = [leaf for leaf in tree_leaves(named) if torch.is_tensor(leaf)]
                self.watch(self.ops[-1], read, tensors)
        return result

    def _repeats(self, func: Any, written: set[int]) -> bool:
        """Whether the next forward will compute the same: no random numbers, no counters."""
        random = torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        return not random and not written & self._state

    def _note_read(self, inputs: tuple[Value, ...]) -> None:
        """An operation whose result is no tensor, as `item`."""
        self.read.update(inputs)
        if self._open and not all(value.constant for value in inputs):
            self.deciding.add(self._names.get(id(self._open[-1][0]), ""))

    @contextlib.contextmanager
    def hooks(self) -> Iterator[None]:
        """Notes which module each operation belongs to, and from which lines it was called."""

        def enter(module: nn.Module, args: Any) -> None:
            self._open.append((module, len(self.ops), _sites()))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            while (opened := self._open.pop())[0] is not module:
                pass  # one that raised, and the model caught it
            _, start, sites = opened
            value = self.value(output) if isinstance(output, torch.Tensor) else None
            if (name := self._names.get(id(module))) is not None:
                self.calls.append(ModuleCall(name, start, len(self.ops), value, sites))

        handles = (
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _make_constant(
    inputs: tuple[Value, ...], outputs: tuple[Value, ...], tensors: list[torch.Tensor]
) -> None:
    weights = frozenset[str]().union(*(value.weights for value in inputs))
    for value, tensor in zip(outputs, tensors, strict=True):
        value.constant, value.weights = True, weights
        value.data = tensor.clone() if tensor.numel() <= SMALL else None


def _written(func: Any) -> list[str]:
    """The arguments that an operation changes."""
    schema = getattr(func, "_schema", None)
    arguments = schema.arguments if schema is not None else ()
    return [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]


def _sites() -> frozenset[Site]:
    """The lines of the user's code that are being run, all the way up."""
    found: set[Site] = set()
    frame = sys._getframe(2)
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            found.add((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back  # type: ignore[assignment]
    return frozenset(found)
