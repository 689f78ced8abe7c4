"""A summary as tables: columns and rows of text, for the screen, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ptools.errors import UsageError
from ptools.files import human_bytes, shown_path
from ptools.summary.fold import Group, children_of, fold
from ptools.summary.report import Layer, Shape, Summary

By = Literal["module", "type", "op", "line"]


Sort = Literal["order", "macs", "parameters", "activations"]


@dataclass(frozen=True)
class Table:
    """`rows` of text; `shares` are each row's part of the whole cost (0 to 1) for its bar."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...]
    dim: tuple[bool, ...]
    note: str = ""

    LEFT = ("layer", "type", "output", "operation", "line", "code")


def table_of(
    summary: Summary, by: By = "module", depth: int | None = 3, sort: Sort = "order"
) -> Table:
    """The rows to show; `depth` None is all, a `sort` other than "order" flattens the tree.

    Raises UsageError for a sort by activations that were not measured.
    """
    if sort == "activations" and summary.memory is None:
        raise UsageError("activations are measured with --train only", hint="add --train")
    if by == "op":
        return _by_operation(summary)
    if by == "line":
        return _by_line(summary)
    if by == "type":
        return _by_type(summary)
    return _by_module(summary, depth, sort)


def human_count(count: float, unit: str = "") -> str:
    """Four digits and a prefix: `4.089 G`, `4.089 GMACs`."""
    for prefix in ("", "K", "M", "G", "T", "P"):
        if abs(count) < 999.95 or prefix == "P":
            return f"{count:#.4g} {prefix}{unit}" if prefix else f"{count:.0f} {unit}".rstrip()
        count /= 1000
    raise AssertionError


def shape_text(shapes: Iterable[Shape]) -> str:
    """`1x3x224x224`, several joined by commas."""
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)


@dataclass(frozen=True)
class _Column:
    name: str
    cell: Callable[[Layer, int], str]


def _by_module(summary: Summary, depth: int | None, sort: Sort) -> Table:
    columns = _columns(summary)
    rows: list[tuple[str, ...]] = []
    shares: list[float] = []
    dim: list[bool] = []
    ran = summary.macs is not None and summary.stopped is None
    ordered = list(_order(summary, depth, sort))
    for label, group in ordered:
        layer, count = group.layer, group.count
        kind = layer.type + (f" {layer.kernel}" if layer.kernel else "")
        kind += f" x{count}" if count > 1 else ""
        cells = [column.cell(layer, count) for column in columns]
        rows.append((label, kind + _remark(summary, group, ran), *cells))
        shares.append(_share(summary, layer, count))
        dim.append(ran and not group.ran)
    names = ("layer", "type", *(column.name for column in columns))
    folded = any(group.count > 1 for _, group in ordered)
    note = "a row marked xN, and those below it, are sums over N equal layers" if folded else ""
    return Table(names, tuple(rows), tuple(shares), tuple(dim), note)


def _columns(summary: Summary) -> list[_Column]:
    columns = [_Column("params", lambda la, n: f"{la.parameters * n:,}" if la.parameters else "")]
    if summary.macs is not None:
        columns.insert(0, _Column("output", lambda la, n: shape_text(la.outputs[:1])))
        columns.append(_Column("MACs", lambda la, n: _count(la.macs * n)))
    if summary.backward_macs is not None:
        columns.append(_Column("backward", lambda la, n: _count(la.backward_macs * n)))
    if summary.memory is not None:
        columns.append(_Column("activations", lambda la, n: _bytes((la.activation_bytes or 0) * n)))
    return columns


def _order(summary: Summary, depth: int | None, sort: Sort) -> Iterator[tuple[str, Group]]:
    if sort == "order":
        yield from _tree(fold(summary.layers), summary.model, 0, depth)
        return
    keys: dict[str, Callable[[Layer], int]] = {
        "macs": lambda layer: layer.macs,
        "parameters": lambda layer: layer.parameters,
        "activations": lambda layer: layer.activation_bytes or 0,
    }
    layers = [layer for layer in _alone(summary.layers) if keys[sort](layer)]
    for layer in sorted(layers, key=keys[sort], reverse=True):
        yield layer.path or summary.model, Group(layer.name, layer, (), 0, True)


def _alone(layers: Sequence[Layer]) -> list[Layer]:
    """Each layer without what the layers in it cost."""
    below = children_of(layers)

    def own(layer: Layer, name: str) -> int:
        inner = sum(getattr(child, name) or 0 for child in below.get(layer.path, ()))
        return (getattr(layer, name) or 0) - inner

    return [
        replace(
            layer,
            parameters=own(layer, "parameters"),
            macs=own(layer, "macs"),
            backward_macs=own(layer, "backward_macs"),
            activation_bytes=own(layer, "activation_bytes"),
        )
        for layer in layers
    ]


def _tree(group: Group, label: str, level: int, depth: int | None) -> Iterator[tuple[str, Group]]:
    yield "  " * level + label, group
    if depth is None or level < depth:
        for child in group.below():
            yield from _tree(child, child.label, level + 1, depth)


def _remark(summary: Summary, group: Group, ran: bool) -> str:
    layer = group.layer
    if layer.same_as is not None:
        return f" (same as {layer.same_as})"
    if summary.stopped is not None and layer.path == summary.stopped.layer:
        return f" (STOPPED HERE, got {shape_text(layer.inputs)})"
    if layer.tied:
        return f" (tied: {', '.join(layer.tied)})"
    if ran and not group.ran:
        return " (not called)"
    return f" (called {layer.calls} times)" if layer.calls > 1 else ""


def _share(summary: Summary, layer: Layer, count: int) -> float:
    if summary.macs:
        return layer.macs * count / summary.macs
    return layer.parameters * count / summary.parameters if summary.parameters else 0.0


def _by_operation(summary: Summary) -> Table:
    total = (summary.macs or 0) + (summary.backward_macs or 0)
    uncounted = {entry.operation for entry in summary.not_counted}
    rows = []
    for op in summary.operations:
        macs = "NOT COUNTED" if op.name in uncounted else _count(op.macs)
        rows.append(
            (
                op.name.removeprefix("aten::"),
                f"{op.calls:,}",
                macs,
                _count(op.backward_macs),
                _bytes(op.bytes),
            )
        )
    shares = [(op.macs + op.backward_macs) / total if total else 0.0 for op in summary.operations]
    columns = ("operation", "calls", "MACs", "backward", "read+written")
    return _plain(columns, rows, shares, drop_backward=summary.backward_macs is None)


def _by_line(summary: Summary) -> Table:
    total = (summary.macs or 0) + (summary.backward_macs or 0)
    rows = [
        (f"{shown_path(s.file)}:{s.line}", _count(s.macs), _count(s.backward_macs), s.code)
        for s in summary.lines
    ]
    shares = [(s.macs + s.backward_macs) / total if total else 0.0 for s in summary.lines]
    columns = ("line", "MACs", "backward", "code")
    return _plain(columns, rows, shares, drop_backward=summary.backward_macs is None)


def _by_type(summary: Summary) -> Table:
    total = summary.macs or 0
    found = types_of(summary)
    rows = [
        (name, f"{layers:,}", f"{calls:,}", f"{parameters:,}", _count(macs))
        for name, (layers, calls, parameters, macs) in found
    ]
    shares = [sums[3] / total if total else 0.0 for _, sums in found]
    return _plain(("type", "layers", "calls", "params", "MACs"), rows, shares)


def types_of(summary: Summary) -> list[tuple[str, list[int]]]:
    """Own counts by layer type: layers, calls, parameters, MACs."""
    sums: dict[str, list[int]] = {}
    for layer in summary.layers:
        entry = sums.setdefault(layer.type, [0, 0, 0, 0])
        values = (layer.same_as is None, layer.calls, layer.own_parameters, layer.own_macs)
        for i, value in enumerate(values):
            entry[i] += value
    return sorted(sums.items(), key=lambda item: (-item[1][3], -item[1][2], item[0]))


def _plain(
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    shares: Sequence[float],
    drop_backward: bool = False,
) -> Table:
    keep = [i for i, name in enumerate(columns) if not (drop_backward and name == "backward")]
    return Table(
        tuple(columns[i] for i in keep),
        tuple(tuple(row[i] for i in keep) for row in rows),
        tuple(shares),
        tuple(False for _ in rows),
    )


def _count(count: int) -> str:
    return human_count(count) if count else ""


def _bytes(count: int) -> str:
    return human_bytes(count) if count else ""
