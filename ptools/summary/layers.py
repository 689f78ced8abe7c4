"""Turn a run into rows: who owns which parameter, and which layer spent what."""

from __future__ import annotations

import linecache
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ptools.summary.attribution import Visit
from ptools.summary.report import Layer, NotCounted, Operation, SourceLine
from ptools.summary.trace import Call, Trace
from ptools.summary.tree import Node


@dataclass
class _Row:
    """Sums under construction: one layer's own, then with all that is below it."""

    parameters: int = 0
    trainable: int = 0
    buffers: int = 0
    bytes: int = 0
    macs: int = 0
    backward_macs: int = 0
    activation_bytes: int = 0
    tied: list[str] = field(default_factory=list)


def layers_of(
    found: Sequence[Node], trace: Trace, activations: Mapping[str, int] | None = None
) -> tuple[Layer, ...]:
    """One `Layer` for each node; `activations` are bytes kept for backward, by path."""
    rows = {node.path: _Row() for node in found}
    same_as = _own_tensors(found, rows)
    for call in trace.calls:
        row = rows.get(call.path)
        if row is not None and call.flops:
            row.macs += 0 if call.backward else call.flops // 2
            row.backward_macs += call.flops // 2 if call.backward else 0
    for path, size in (activations or {}).items():
        rows[path].activation_bytes += size
    own = {path: (row.parameters, row.macs) for path, row in rows.items()}
    for node in reversed(found):
        if node.path:
            _add(rows[node.path.rpartition(".")[0]], rows[node.path])
    return tuple(
        _layer(node, own[node.path], rows[node.path], trace, same_as.get(node.path), activations)
        for node in found
    )


def _layer(
    node: Node,
    own: tuple[int, int],
    total: _Row,
    trace: Trace,
    same_as: str | None,
    activations: Mapping[str, int] | None,
) -> Layer:
    visit = trace.visits.get(node.path, Visit())
    return Layer(
        path=node.path,
        type=type_name(node.module),
        depth=node.depth,
        kernel=node.kernel,
        calls=visit.calls,
        inputs=visit.inputs,
        outputs=visit.outputs,
        parameters=total.parameters,
        own_parameters=own[0],
        trainable=total.trainable,
        buffers=total.buffers,
        bytes=total.bytes,
        macs=total.macs,
        own_macs=own[1],
        backward_macs=total.backward_macs,
        activation_bytes=None if activations is None else total.activation_bytes,
        tied=tuple(total.tied),
        same_as=same_as,
    )


def type_name(module: nn.Module) -> str:
    """The class, of a TorchScript module the one that it was made of."""
    if isinstance(module, torch.jit.ScriptModule):
        return str(module.original_name)
    return type(module).__name__


def _own_tensors(found: Sequence[Node], rows: Mapping[str, _Row]) -> dict[str, str]:
    """Give each tensor to the first layer that holds it; the paths that repeat a module."""
    first_path: dict[int, str] = {}
    same_as: dict[str, str] = {}
    owner: dict[int, str] = {}
    for node in found:
        seen = first_path.setdefault(id(node.module), node.path)
        if seen != node.path:
            same_as[node.path] = seen
            continue
        row = rows[node.path]
        for name, parameter in node.module._parameters.items():
            if parameter is None or is_lazy(parameter):
                continue
            full = f"{node.path}.{name}" if node.path else name
            first = owner.setdefault(id(parameter), full)
            if first != full:
                row.tied.append(f"{name} = {first}")
                continue
            row.parameters += parameter.numel()
            row.trainable += parameter.numel() if parameter.requires_grad else 0
            row.bytes += parameter.numel() * parameter.element_size()
        for buffer in node.module._buffers.values():
            if buffer is not None and not is_lazy(buffer) and id(buffer) not in owner:
                owner[id(buffer)] = node.path
                row.buffers += buffer.numel()
                row.bytes += buffer.numel() * buffer.element_size()
    return same_as


def _add(parent: _Row, child: _Row) -> None:
    parent.parameters += child.parameters
    parent.trainable += child.trainable
    parent.buffers += child.buffers
    parent.bytes += child.bytes
    parent.macs += child.macs
    parent.backward_macs += child.backward_macs
    parent.activation_bytes += child.activation_bytes


def operations_of(calls: Iterable[Call]) -> tuple[Operation, ...]:
    """Costliest first, then the most bytes."""
    sums: dict[str, list[int]] = {}
    for call in calls:
        entry = sums.setdefault(call.op, [0, 0, 0, 0])
        entry[0] += 1
        entry[2 if call.backward else 1] += (call.flops or 0) // 2
        entry[3] += call.bytes
    found = (Operation(name, *entry) for name, entry in sums.items())
    return tuple(sorted(found, key=lambda o: (-o.macs - o.backward_macs, -o.bytes, o.name)))


def lines_of(calls: Iterable[Call]) -> tuple[SourceLine, ...]:
    """Source lines that cost MACs, costliest first."""
    sums: dict[tuple[str, int], list[int]] = {}
    for call in calls:
        if call.flops and call.line:
            sums.setdefault(call.line, [0, 0])[call.backward] += call.flops // 2
    found = (
        SourceLine(file, number, linecache.getline(file, number).strip(), *macs)
        for (file, number), macs in sums.items()
    )
    return tuple(sorted(found, key=lambda line: (-line.macs - line.backward_macs, line.line)))


def not_counted(calls: Iterable[Call]) -> tuple[NotCounted, ...]:
    """Operations without a formula, the most frequent first, each with its first layer."""
    first: dict[str, str] = {}
    times: dict[str, int] = {}
    for call in calls:
        if call.flops is None:
            first.setdefault(call.op, call.path)
            times[call.op] = times.get(call.op, 0) + 1
    order = sorted(times, key=lambda op: (-times[op], op))
    return tuple(NotCounted(op, times[op], first[op]) for op in order)


def dtypes_of(found: Sequence[Node]) -> dict[str, int]:
    """Parameters by dtype."""
    counts: dict[str, int] = {}
    held = (p for node in found for p in node.module._parameters.values() if p is not None)
    for parameter in {id(p): p for p in held}.values():
        if not is_lazy(parameter):
            name = str(parameter.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + parameter.numel()
    return counts
