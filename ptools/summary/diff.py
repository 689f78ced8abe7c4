"""Two summaries side by side, matched by the names of their layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from ptools.files import human_bytes
from ptools.summary.fold import Group, fold
from ptools.summary.render import TableView
from ptools.summary.report import Summary
from ptools.summary.table import Table, human_count

Pair = tuple[Group | None, Group | None]


def render_diff(left: Summary, right: Summary, depth: int | None = 3) -> RenderableType:
    """The table of layers, the totals of both, and the verdict as the last line."""
    totals: list[tuple[str, int, int, Callable[[float], str]]] = []
    totals.append(("parameters", left.parameters, right.parameters, human_count))
    totals.append(("bytes", left.bytes, right.bytes, human_bytes))
    if left.macs is not None and right.macs is not None:
        totals.append(("MACs", left.macs, right.macs, human_count))
    if left.memory and right.memory:
        peaks = left.memory.peak_bytes, right.memory.peak_bytes
        totals.append(("training peak", *peaks, human_bytes))
    lines = [
        f"{name:<14}{show(a):>12} -> {show(b):>12}   {_change(a, b)}" for name, a, b, show in totals
    ]
    return Lines(
        TableView(diff_table(left, right, depth)),
        Text("\n" + "\n".join(lines) + "\n"),
        Text(_verdict(left, right), style="bold"),
    )


def diff_table(left: Summary, right: Summary, depth: int | None = 3) -> Table:
    """A row for each layer of either; one that is the same in both is dim."""
    values: list[tuple[str, Callable[[Group | None], int | None]]] = [("params", _parameters)]
    if left.macs is not None and right.macs is not None:
        values.append(("MACs", _macs))
    rows: list[tuple[str, ...]] = []
    dim: list[bool] = []
    for level, (a, b) in _rows((fold(left.layers), fold(right.layers)), 0, depth):
        names = [_both(_label(a, left), _label(b, right)), _both(_type(a), _type(b))]
        pairs = [(value(a), value(b)) for _, value in values]
        cells = [cell for x, y in pairs for cell in (_number(x), _number(y), _change(x, y))]
        rows.append(("  " * level + names[0], names[1], *cells))
        dim.append(all(x == y for x, y in pairs) and " | " not in "".join(names))
    columns = ["layer", "type"]
    for name, _ in values:
        columns += [name, name, "change"]
    return Table(tuple(columns), tuple(rows), tuple(0.0 for _ in rows), tuple(dim))


def _rows(pair: Pair, level: int, depth: int | None) -> Iterator[tuple[int, Pair]]:
    yield level, pair
    if depth is None or level < depth:
        for below in _matched(*(group.below() if group else [] for group in pair)):
            yield from _rows(below, level + 1, depth)


def _matched(left: list[Group], right: list[Group]) -> Iterator[Pair]:
    """Pairs of the same name but for numbers (`layers.0-11`, `layers.0-23`), else one side."""
    names = [[re.sub(r"\d+(-\d+)?", "#", g.label) for g in side] for side in (left, right)]
    for _, a, a_end, b, b_end in SequenceMatcher(
        None, names[0], names[1], autojunk=False
    ).get_opcodes():
        if names[0][a:a_end] == names[1][b:b_end]:
            yield from zip(left[a:a_end], right[b:b_end], strict=True)
        else:
            yield from ((group, None) for group in left[a:a_end])
            yield from ((None, group) for group in right[b:b_end])


def _label(group: Group | None, summary: Summary) -> str | None:
    return None if group is None else group.label or summary.model


def _type(group: Group | None) -> str | None:
    if group is None:
        return None
    return group.layer.type + (f" x{group.count}" if group.count > 1 else "")


def _parameters(group: Group | None) -> int | None:
    return None if group is None else group.layer.parameters * group.count


def _macs(group: Group | None) -> int | None:
    return None if group is None else group.layer.macs * group.count


def _both(a: str | None, b: str | None) -> str:
    return a or b or "" if a == b or a is None or b is None else f"{a} | {b}"


def _number(value: int | None) -> str:
    return "-" if value is None else human_count(value)


def _change(a: int | None, b: int | None) -> str:
    if a is None or b is None:
        return "only right" if a is None else "only left"
    if a == b:
        return "="
    return f"x{b / a:.3g}" if a else "new"


def _verdict(left: Summary, right: Summary) -> str:
    same = left.model == right.model
    first, second = ("the first", "the second") if same else (left.model, right.model)
    text = f"{second} has {_change(left.parameters, right.parameters)} the parameters"
    if left.macs is not None and right.macs is not None:
        text += f" and {_change(left.macs, right.macs)} the MACs"
    return (text + f" of {first}").replace("= the", "the same number of")
