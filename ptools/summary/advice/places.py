"""Name many layers in a few words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_MOST_NAMES = 3
Box = tuple[tuple[int, int], ...]


def places(costs: Mapping[str, float]) -> tuple[str, ...]:
    """The layers (paths with their costs): at most three names, else a count and the costliest.

    Layers that differ in numbers only are one name: `layers.0-11.mlp.fc1`.
    """
    names = fold_paths(sorted(costs, key=lambda path: -costs[path]))
    if len(names) <= _MOST_NAMES:
        return tuple(names)
    costliest = max(costs, key=lambda path: costs[path])
    return (f"{len(costs)} layers, the costliest {costliest or 'the model itself'}",)


def fold_paths(paths: Iterable[str]) -> list[str]:
    """Paths with ranges in the place of numbers; exactly the given ones, in their order."""
    stems: dict[str, list[Box]] = {}
    for path in paths:
        numbers = tuple((int(n), int(n)) for n in re.findall(r"\d+", path))
        stems.setdefault(re.sub(r"\d+", "#", path), []).append(numbers)
    return [
        _filled(stem, box) or "the model itself"
        for stem, boxes in stems.items()
        for box in _merged(boxes)
    ]


def _merged(boxes: list[Box]) -> list[Box]:
    """Join neighbours along one position after the other, the last one first."""
    for position in reversed(range(len(boxes[0]))):
        lines: dict[Box, list[tuple[int, int]]] = {}
        for box in boxes:
            lines.setdefault(box[:position] + box[position + 1 :], []).append(box[position])
        boxes = [
            (*rest[:position], span, *rest[position:])
            for rest, spans in lines.items()
            for span in _joined(spans)
        ]
    return boxes


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if joined and joined[-1][1] + 1 == low:
            joined[-1] = joined[-1][0], high
        else:
            joined.append((low, high))
    return joined


def _filled(stem: str, box: Box) -> str:
    spans = iter(box)

    def text(_: re.Match[str]) -> str:
        low, high = next(spans)
        return str(low) if low == high else f"{low}-{high}"

    return re.sub("#", text, stem)
