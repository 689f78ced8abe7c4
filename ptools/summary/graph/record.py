"""The dataflow of one forward, as a graph of operations."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from ptools.inputs import Inputs
from ptools.summary.attribution import ModuleStack, Visit
from ptools.summary.ladder import Subject, staged
from ptools.summary.report import Rung
from ptools.summary.trace import Call, Recorder, plain_kernels, quiet
from ptools.summary.tree import Node


@dataclass(frozen=True)
class GraphNode:
    """An operation, parameter, buffer, constant, input or output.

    `name` is the module's path with `/`, then a name in it. `inputs` are earlier nodes and which
    of their outputs, as `NAME` or `NAME:1`. `shapes` and `dtypes` are those of the outputs.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    macs: int | None = None


def record_graph(subject: Subject, inputs: Inputs, rung: Rung) -> list[GraphNode]:
    """Run a stand-in; the nodes come in the order of the run, so no edge leads backwards."""
    with staged(rung, subject, inputs) as (model, found, args, kwargs):
        modules = ModuleStack(found)
        graph = _Graph(found, modules.visits)
        graph.add_inputs(_arguments(model, args, kwargs))
        recorder = _GraphRecorder(modules, graph, on_meta=rung == "meta")
        with quiet(), plain_kernels(), torch.no_grad(), recorder:
            output = model(*args, **kwargs)
        graph.add_outputs(output)
        graph.add_unused_parameters()
    return _without_idle(graph.nodes)


class _Names:
    """Gives every name once: who asks for it again gets it with `_1`, `_2` and so on."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._asked: dict[str, int] = {}

    def new(self, group: str, name: str) -> str:
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        wanted = f"{group}/{name}" if group else re.sub(r"^(?=[_-]|$)", ".", name)
        candidate = wanted
        while candidate in self._given:
            self._asked[wanted] = self._asked.get(wanted, 0) + 1
            candidate = f"{wanted}_{self._asked[wanted]}"
        self._given.add(candidate)
        return candidate


class _Graph:
    """The nodes so far, and which of them made each tensor.

    Tensors are known by their ids, so all are kept until the end. A write to one may reach every
    view of the same memory: who reads one of these later depends on that write, too.
    """

    def __init__(self, found: Sequence[Node], visits: Mapping[str, Visit]) -> None:
        self.nodes: list[GraphNode] = []
        self._names = _Names()
        self._visits = visits
        self._groups: dict[tuple[str, int], str] = {}
        self._registered: dict[int, tuple[torch.Tensor, str, str, str]] = {}
        self._maker: dict[int, tuple[int, str]] = {}
        self._base: dict[int, int] = {}  # of each view: the id of the tensor whose memory it is
        self._writer: dict[int, tuple[int, str]] = {}  # the last one, by the id of that tensor
        self._kept: list[torch.Tensor] = []
        for node in found:
            group = self._group(node.path)
            for op, name, tensor in _own_tensors(node.module):
                self._registered.setdefault(id(tensor), (tensor, op, group, name))

    def add_inputs(self, arguments: Mapping[Any, Any]) -> None:
        group = self._names.new("", "input")
        for label, tensor in _labelled(arguments):
            self._add("Input", group, label, (), [tensor])

    def add_outputs(self, output: Any) -> None:
        single = isinstance(output, torch.Tensor)
        group = "" if single else self._names.new("", "output")
        for label, tensor in _labelled(output):
            sources = self._sources([tensor], "")
            self._add("Output", group, label or "output", sources, [tensor])

    def add_call(self, call: Call, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        read = _tensors((args, kwargs))
        if any(is_lazy(tensor) for tensor in read):
            return  # has no shape yet: it is about to get one
        sources = self._sources(read, call.path)
        if call.op == "aten::detach":  # torch does it to every new tensor; the values are the same
            self._maker[id(out)] = self._maker[id(args[0])]
            self._base[id(out)] = self._base_of(args[0])
            self._kept.append(out)
            return
        made, written = _tensors(out), _written(func, args, kwargs)
        made += [tensor for tensor in written if all(tensor is not other for other in made)]
        name = func._overloadpacket.__name__.lstrip("_")
        macs = call.flops // 2 if call.flops else None
        self._add(call.op, self._group(call.path), name, sources, made, macs)
        if func.is_view:
            self._base.update((id(view), self._base_of(read[0])) for view in made)
        for tensor in written:
            self._writer[self._base_of(tensor)] = self._maker[id(tensor)]

    def add_unused_parameters(self) -> None:
        for tensor, op, group, name in self._registered.values():
            if op == "Parameter" and id(tensor) not in self._maker and not is_lazy(tensor):
                self._add(op, group, name, (), [tensor])

    def _base_of(self, tensor: torch.Tensor) -> int:
        return self._base.get(id(tensor), id(tensor))

    def _group(self, path: str) -> str:
        """The module's path with `/`; a second call is a group of its own, else we drew a loop."""
        visit = self._visits.get(path)
        call = path, visit.calls if visit else 1
        if call not in self._groups:
            parent, _, name = path.rpartition(".")
            self._groups[call] = self._names.new(self._group(parent), name) if path else ""
        return self._groups[call]

    def _add(
        self,
        op: str,
        group: str,
        name: str,
        sources: Iterable[str],
        made: Sequence[torch.Tensor],
        macs: int | None = None,
    ) -> None:
        name = self._names.new(group, name)
        shapes = tuple(tuple(int(size) for size in tensor.shape) for tensor in made)
        dtypes = tuple(str(tensor.dtype).removeprefix("torch.") for tensor in made)
        for index, tensor in enumerate(made):
            self._maker[id(tensor)] = len(self.nodes), f"{name}:{index}" if index else name
        self._kept += made
        self.nodes.append(GraphNode(name, op, tuple(sources), shapes, dtypes, macs))

    def _sources(self, tensors: Iterable[torch.Tensor], path: str) -> Iterable[str]:
        """Who made these tensors, and who has written to their memory since."""
        sources: dict[str, None] = {}
        for tensor in tensors:
            if id(tensor) not in self._maker:
                constant = (tensor, "Constant", self._group(path), "constant")
                _, op, group, name = self._registered.get(id(tensor), constant)
                self._add(op, group, name, (), [tensor])
            maker = self._maker[id(tensor)]
            writer = self._writer.get(self._base_of(tensor), maker)
            sources[maker[1]] = None
            if writer[0] > maker[0]:
                sources[writer[1]] = None
        return sources


class _GraphRecorder(Recorder):
    """Adds each call to the graph as it is recorded."""

    def __init__(self, modules: ModuleStack, graph: _Graph, *, on_meta: bool) -> None:
        super().__init__(modules, on_meta=on_meta)
        self.graph = graph
        self.added = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if len(self.calls) > self.added:  # else it was decomposed: its parts have been added
            self.added = len(self.calls)
            if func.namespace != "prim":  # asks a tensor for its device, and the like
                self.graph.add_call(self.calls[-1], func, args, kwargs or {}, out)
        return out


def _without_idle(recorded: Sequence[GraphNode]) -> list[GraphNode]:
    """Less the operations that read nothing and whose result nobody reads, such as `empty`."""
    read = {source.partition(":")[0] for node in recorded for source in node.inputs}
    return [n for n in recorded if "::" not in n.op or n.inputs or n.name in read]


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    for op, tensors in (("Parameter", module._parameters), ("Buffer", module._buffers)):
        for name, tensor in tensors.items():
            if tensor is not None:
                yield op, name, tensor


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The arguments that the operation writes to."""
    if not func._schema.is_mutable:
        return []
    values = [
        args[index] if index < len(args) else kwargs.get(argument.name)
        for index, argument in enumerate(func._schema.arguments)
        if argument.is_write
    ]
    return _tensors(values)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Any, Any]:
    """The arguments under the names that they have in the forward."""
    try:
        return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return {**dict(enumerate(args)), **kwargs}


def _labelled(value: Any, label: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested containers, with the way to each, as `hidden_states.0`."""
    if isinstance(value, torch.Tensor):
        yield label, value
        return
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    elif dataclasses.is_dataclass(value):
        items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    for key, item in items:
        yield from _labelled(item, f"{label}.{key}" if label else str(key))
