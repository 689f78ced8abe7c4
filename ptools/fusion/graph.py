"""Merge, in an exported graph, what the model's modules could not say."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from ptools.fusion.affine import Affine
from ptools.fusion.exported import GraphReading
from ptools.fusion.regions import SHAPES, Regions
from ptools.fusion.trace import Value

_aten = torch.ops.aten


def simplify(graph: fx.GraphModule) -> bool:
    """Merge regions and drop additions of nothing, in place; whether there were any.

    Args:
        graph: functional ATen operations with the weights as attributes, as
            `program.run_decompositions({}).module()` gives it.
    """
    dropped = _drop_zeros(graph)
    reading = GraphReading(graph, graph)
    nodes: dict[Value, fx.Node] = {}
    for node, value in reading.values.items():
        if isinstance(value, Value):
            nodes.setdefault(value, node)
    regions = [
        region
        for region in Regions(reading.trace).widest()
        if not any(op.name in SHAPES for op in region.ops)
    ]
    for number, region in enumerate(regions):
        _merge(graph, region, nodes, f"merged_{number}")
    _tidy(graph)
    return dropped or bool(regions)


def _drop_zeros(graph: fx.GraphModule) -> bool:
    """Take out `x + 0`, which is left where a branch was."""
    dropped = False
    for node in graph.graph.nodes:
        if node.target not in (_aten.add.Tensor, _aten.add.Scalar):
            continue
        value, zero = node.args[:2]
        if isinstance(zero, fx.Node) or zero != 0:
            continue
        if value.meta["val"].dtype == node.meta["val"].dtype:
            node.replace_all_uses_with(value)
            dropped = True
    return dropped


def _merge(graph: fx.GraphModule, region: Affine, nodes: dict[Value, fx.Node], name: str) -> None:
    """Put one operation in the place of a region's."""
    old, source = nodes[region.value], nodes[region.source]
    with graph.graph.inserting_before(old):
        kernel = []
        for part, tensor in zip(("weight", "bias"), region.kernel(), strict=True):
            like = region.convolutions[0].arguments["weight"].data
            parameter = nn.Parameter(tensor.to(like), requires_grad=False)
            graph.register_parameter(f"{name}_{part}", parameter)
            kernel.append(graph.graph.get_attr(f"{name}_{part}"))
        func, more = _operation(region)
        new = graph.graph.call_function(func, (source, *kernel, *more))
    old.replace_all_uses_with(new)


def _operation(region: Affine) -> tuple[Any, tuple[Any, ...]]:
    """The ATen operation for a region, with its arguments after the kernel."""
    window = region.window
    if not window.size:
        return _aten.linear.default, ()
    moves = (list(window.stride), list(window.padding), list(window.dilation))
    return _aten.convolution.default, (
        *moves,
        window.transposed,
        region.output_padding,
        window.groups,
    )


def _tidy(graph: fx.GraphModule) -> None:
    """Without what nothing reads any more."""
    graph.graph.eliminate_dead_code()
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    named = (
        *graph.named_parameters(remove_duplicate=False),
        *graph.named_buffers(remove_duplicate=False),
    )
    for name, _ in named:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(graph.get_submodule(owner), attribute)
    graph.recompile()
