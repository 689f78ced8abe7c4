"""The second prover: the graph that torch.export makes, read as a trace without running it."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from ptools.dispatch import name_of
from ptools.fusion.prove import Proof, signature, signatures
from ptools.fusion.quiet import silence
from ptools.fusion.trace import SMALL, Op, Trace, Value, by_name
from ptools.fusion.trials import Trial
from ptools.usercode import describe

_UNKNOWN = -1  # a dimension that depends on data


def exported_trace(model: nn.Module, trial: Trial) -> tuple[Trace | None, str | None]:
    """The trace of the graph that torch.export makes of a model, or why there is none.

    Args:
        model: one that may be changed: its buffers, and attributes that a forward sets.
        trial: the arguments; their values are not looked at, only shapes and types.
    """
    from torch import export

    try:
        with silence(), torch.no_grad():
            if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
                trial.run(model)  # torch.export can't make lazy weights
            program = export.export(model, trial.args, trial.kwargs, strict=False)
            return GraphReading(program.run_decompositions({}).module(), model).trace, None
    except Exception as error:
        return None, f"torch.export: {describe(error)}"


def agreement(proof: Proof, exported: Trace) -> None:
    """Take changes out of a proof that the exported graph does not show."""
    shown = signatures(exported)
    for fold, regions in list(proof.folds.items()):
        if any(signature(region) not in shown for region in regions):
            proof.refuse(fold, "torch.export's graph does not show it")


class GraphReading:
    """A functional ATen graph with its weights as attributes, as a `trace`.

    `values` are those of its nodes: a Value, or a list of them where an operation has several
    results. Weights are named as `model` names them; constants are computed.
    """

    def __init__(self, graph: fx.GraphModule, model: nn.Module) -> None:
        self.values: dict[fx.Node, Any] = {}
        self._graph = graph
        self._names = _first_names(model)
        self._weights: dict[str, Value] = {}
        self._real: dict[Value, torch.Tensor] = {}
        self._ops: list[Op] = []
        self._seen: set[Value] = set()  # from outside
        for node in graph.graph.nodes:
            self.values[node] = self._read(node)
        self.trace = Trace(self._ops, self._seen)

    def _read(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        if node.op == "output":
            self._seen.update(self._inputs(node))
        if node.op == "call_function":
            if node.target is operator.getitem:
                whole: Any = node.args[0]
                return self.values[whole] and self.values[whole][node.args[1]]
            return self._call(node)
        return tree_map(_value_of, node.meta.get("val"))

    def _attribute(self, name: str) -> Value | None:
        tensor = operator.attrgetter(name)(self._graph)
        if not isinstance(tensor, torch.Tensor):
            return None
        weight = self._names.get(name)
        if weight in self._weights:
            return self._weights[weight]
        value = Value(tuple(tensor.shape), tensor.dtype, weight, constant=True)
        value.data = self._real[value] = tensor.detach()
        if weight is not None:
            value.weights = frozenset((weight,))
            self._weights[weight] = value
        return value

    def _call(self, node: fx.Node) -> Any:
        func: Any = node.target
        inputs = self._inputs(node)
        if getattr(func, "_schema", None) is not None and func._schema.is_mutable:
            self._seen.update(inputs)  # left in a buffer
        if _changes_nothing(node):
            return inputs[0]
        result = tree_map(_value_of, node.meta.get("val"))
        outputs = tuple(leaf for leaf in tree_leaves(result) if isinstance(leaf, Value))
        if not outputs:
            return None
        named = isinstance(func, torch._ops.OpOverload)
        arguments = by_name(func, node.args, node.kwargs) if named else {}
        arguments = fx.map_arg(arguments, self.values.__getitem__)
        name = name_of(func) if named else str(func)
        self._ops.append(Op(name, len(self._ops), arguments, inputs, outputs))
        if named and self._is_constant(node):
            self._compute(node, inputs, outputs)
        return result

    def _inputs(self, node: fx.Node) -> tuple[Value, ...]:
        values = (self.values[each] for each in node.all_input_nodes)
        return tuple(leaf for leaf in tree_leaves(list(values)) if isinstance(leaf, Value))

    def _is_constant(self, node: fx.Node) -> bool:
        func: Any = node.target
        if torch.Tag.nondeterministic_seeded in func.tags:
            return False
        return all(self.values[each] in self._real for each in node.all_input_nodes)

    def _compute(
        self, node: fx.Node, inputs: tuple[Value, ...], outputs: tuple[Value, ...]
    ) -> None:
        func: Any = node.target
        args, kwargs = fx.map_arg(
            (node.args, node.kwargs), lambda each: self._real[self.values[each]]
        )
        results = (leaf for leaf in tree_leaves(func(*args, **kwargs)) if torch.is_tensor(leaf))
        weights = frozenset[str]().union(*(value.weights for value in inputs))
        for value, tensor in zip(outputs, results, strict=True):
            self._real[value] = tensor
            value.constant, value.weights = True, weights
            value.data = tensor if math.prod(value.shape) <= SMALL else None


def _first_names(model: nn.Module) -> dict[str, str]:
    """All names of parameters and buffers, each with that under which the model lists it."""
    first: dict[int, str] = {}
    tensors = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _value_of(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return None
    return Value(_known(leaf.shape), leaf.dtype)


def _known(sizes: Any) -> tuple[int, ...]:
    """Sizes as numbers: of a dynamic one, what it was in the example."""
    return tuple(
        size if isinstance(size, int) else size.node.hint if size.node.has_hint() else _UNKNOWN
        for size in sizes
    )


def _changes_nothing(node: fx.Node) -> bool:
    """Whether it is a view of all of its input as it was."""
    func, made = node.target, node.meta.get("val")
    if not isinstance(func, torch._ops.OpOverload) or not func.is_view:
        return False
    read = node.all_input_nodes[0].meta.get("val") if node.all_input_nodes else None
    if not isinstance(read, torch.Tensor) or not isinstance(made, torch.Tensor):
        return False
    same = read.dtype == made.dtype and _known(read.shape) == _known(made.shape)
    return same and _known(read.stride()) == _known(made.stride())
