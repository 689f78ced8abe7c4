"""Records each operation: what it was given, and what it came to."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch._C import _current_graph_task_id
from torch._C._autograd import _get_sequence_nr

from ptools.dispatch import DispatchMode, Unseen
from ptools.program.lines import Lines
from ptools.program.modules import Modules
from ptools.repro.events import Value
from ptools.repro.ranks.collectives import brought
from ptools.repro.recording.digests import Digester
from ptools.repro.recording.leaves import number, value_of
from ptools.repro.recording.operations import Operation, arguments_of, operation_of

_DEVICE = {"device", "pin_memory", "layout", "memory_format", "generator"}


class Tracer(DispatchMode):
    """Calls `record` with each operation and its values while it is entered.

    `record` takes the operation, the values, a digest of the generator's state or None, the spot,
    whether a backward is at work, and whether unwritten memory was read; `entered` is told of
    tensors that are made of what is none.
    """

    def __init__(
        self,
        modules: Modules,
        digester: Digester,
        record: Callable[..., None],
        entered: Callable[[str, torch.Tensor], None],
    ) -> None:
        super().__init__()
        self.lines = Lines(modules)
        self.is_on = False
        self.is_quiet = False
        self._digester = digester
        self._record = record
        self._entered = entered
        self._last = -1
        # Memory that nothing was written to, or only parts of it.
        self._unwritten: WeakKeyDictionary[Any, None] = WeakKeyDictionary()
        # Memory that other processes filled.
        self._received: WeakKeyDictionary[Any, None] = WeakKeyDictionary()

    def switch(self, on: bool) -> None:
        """Begin or end, within one thread in the reverse order of other modes."""
        if on != self.is_on:
            self.is_on = on
            mode: Any = self
            mode.__enter__() if on else mode.__exit__(None, None, None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        operation, kwargs = operation_of(func), kwargs or {}
        if self.is_quiet or operation.silent:
            out = func(*args, **kwargs)
            if operation.fresh and isinstance(out, torch.Tensor):
                self._unwritten[out.untyped_storage()] = None
            elif operation.name == "aten::lift_fresh" and not self.is_quiet:
                self._entered("torch.tensor", out)
            return out
        with Unseen():
            values, unwritten = self._given(operation, args, kwargs)
            generator = _state(args, kwargs) if operation.random else None
        out = func(*args, **kwargs)
        made = _get_sequence_nr() - 1
        if made != self._last:
            self._last = made
            self.lines.note(made)
        with Unseen():
            if operation.collective:
                self._receive(operation, args, kwargs, out)
            else:
                values += self._results(operation, args, kwargs, out)
            backward = _current_graph_task_id() != -1
            spot = self.lines.current()
            self._record(operation, tuple(values), generator, spot, backward, unwritten)
        return out

    def _given(
        self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Value], bool]:
        values, unwritten = [], False
        for name, value in arguments_of(operation, args, kwargs):
            if isinstance(value, torch.Tensor):
                if name.partition("[")[0] not in operation.read:
                    continue
                if _is_in(self._unwritten, value):
                    unwritten = True
                    continue
                role = "received" if _is_in(self._received, value) else "input"
                values.append(value_of(f"{role} {name}", value, self._digester))
            elif name not in _DEVICE:
                values.append(number(f"argument {name}", value))
        return values, unwritten

    def _results(
        self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> Iterator[Value]:
        several = isinstance(out, list | tuple)
        for index, one in enumerate(out if several else (out,)):
            if isinstance(one, torch.Tensor) and index not in operation.scratch:
                yield value_of(f"output {index}" if several else "output", one, self._digester)
        for name, one in arguments_of(operation, args, kwargs) if operation.written else ():
            if isinstance(one, torch.Tensor) and name.partition("[")[0] in operation.written:
                self._wrote(one)
                if one is not out:
                    yield value_of(f"written {name}", one, self._digester)

    def _receive(
        self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """A collective may still be at work: what it brings shows where it is read."""
        for tensor in brought(operation.name, arguments_of(operation, args, kwargs), out):
            if tensor.layout is torch.strided:
                self._unwritten.pop(tensor.untyped_storage(), None)
                self._received[tensor.untyped_storage()] = None

    def _wrote(self, tensor: torch.Tensor) -> None:
        if _is_in(self._unwritten, tensor):
            memory = tensor.untyped_storage()
            if tensor.numel() * tensor.element_size() == memory.nbytes():
                del self._unwritten[memory]


def _is_in(memories: WeakKeyDictionary[Any, None], tensor: torch.Tensor) -> bool:
    return (
        bool(memories) and tensor.layout is torch.strided and tensor.untyped_storage() in memories
    )


def _state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """A digest of the state of the generator that an operation draws from."""
    given = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Generator)]
    generator = given[0] if given else torch.default_generator
    if not given:
        tensors = [one for one in args if isinstance(one, torch.Tensor) and one.is_cuda]
        if tensors:
            generator = torch.cuda.default_generators[tensors[0].device.index]
    return zlib.crc32(generator.get_state().numpy().data)
