"""Fold eighty equal layers into one: `layers.0-79  LlamaDecoderLayer x80`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ptools.summary.report import Layer

_CONTAINERS = ("ModuleList", "ModuleDict", "Sequential")


@dataclass(frozen=True)
class Group:
    """`count` siblings that are equal down to the leaves; `layer` is the first of them.

    `kind` is the same number for equal subtrees. `ran` is false where nothing in it was called.
    """

    label: str
    layer: Layer
    children: tuple[Group, ...]
    kind: int
    ran: bool
    count: int = 1

    def below(self) -> list[Group]:
        """The children, each counted for all repeats of this group."""
        return [replace(child, count=child.count * self.count) for child in self.children]


def fold(layers: Sequence[Layer]) -> Group:
    """The model as a tree in which runs of equal siblings are one group."""
    below = children_of(layers)
    kinds: dict[object, int] = {}

    def group(layer: Layer) -> Group:
        children = tuple(_runs(group(child) for child in below.get(layer.path, ())))
        ran = layer.calls > 0 or any(child.ran for child in children)
        signature = (_own(layer), tuple((c.label, c.count, c.kind) for c in children))
        kind = kinds.setdefault(signature, len(kinds))
        return _without_container(Group(layer.name, layer, children, kind, ran))

    return group(layers[0])


def children_of(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The layers directly below each path; the first layer is the model."""
    below: dict[str, list[Layer]] = {}
    for layer in layers[1:]:
        below.setdefault(layer.path.rpartition(".")[0], []).append(layer)
    return below


def _own(layer: Layer) -> object:
    """What must be equal, besides the layers below, for two siblings to be folded."""
    return replace(layer, path="", tied=(), same_as=None), bool(layer.tied), bool(layer.same_as)


def _runs(siblings: Iterable[Group]) -> list[Group]:
    folded: list[Group] = []
    for sibling in siblings:
        last = folded[-1] if folded else None
        if last and last.kind == sibling.kind and _numbered_alike(last.label, sibling.label):
            number = re.findall(r"\d+", sibling.label)[-1]
            label = f"{re.sub(r'-[0-9]+$', '', last.label)}-{number}"
            folded[-1] = replace(last, label=label, count=last.count + 1)
        else:
            folded.append(sibling)
    return folded


def _numbered_alike(first: str, second: str) -> bool:
    """`0-3` and `4`, `block1` and `block2`: but not `k_proj` and `v_proj`."""
    stem = re.sub(r"\d+$", "", second)
    return stem != second and re.fullmatch(rf"{re.escape(stem)}\d+(-\d+)?", first) is not None


def _without_container(group: Group) -> Group:
    """A ModuleList or the like with one group in it is shown as that group."""
    if not group.layer.path or group.layer.type not in _CONTAINERS or len(group.children) != 1:
        return group
    (child,) = group.children
    return replace(child, label=f"{group.label}.{child.label}", kind=group.kind)
