"""A checkpoint laid flat, its tensors and values by their keys, to be held beside another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from ptools.checkpoint.containers import Weights, choose_weights, find_weights
from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.formats import open_checkpoint
from ptools.checkpoint.look.entries import short
from ptools.checkpoint.names.matching import match
from ptools.checkpoint.pickles.modules import state_dicts
from ptools.checkpoint.pickles.nodes import ATOMS, Call, Dict, Global, List, Node, Storage, Tuple
from ptools.checkpoint.pickles.plain import make_plain
from ptools.checkpoint.pickles.tensors import Tensor, tensor_of

_MOST = 1_000_000  # values and tensors; a pickle can say the same thing any number of times
_DEEPEST = 100  # levels

Keys: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """A checkpoint's tensors and other values by their keys, of which `place` are the weights'."""

    path: Path
    weights: Weights | None
    place: Keys
    lost: list[str]
    tensors: dict[Keys, Tensor]
    values: dict[Keys, Node]

    def names(self) -> dict[str, tuple[int, ...]]:
        """The weights' names and shapes."""
        found = self.tensors.items()
        return {keys[-1]: tensor.shape for keys, tensor in found if keys[:-1] == self.place}


def read_side(path: Path) -> Side:
    """Read a checkpoint, its objects converted as `fix_ckpt` does: then they can be compared."""
    checkpoint = open_checkpoint(path)
    root, _ = state_dicts(checkpoint.root)
    root, changes = make_plain(root)
    found = find_weights(root)
    weights = choose_weights(found, ema=False) if found else None
    side = Side(
        path,
        weights,
        weights.keys if weights else (),
        [f"{change.where} ({change.what}) of {path}" for change in changes if not change.became],
        {},
        {},
    )
    for keys, value in _flat(path, root):
        if isinstance(value, Tensor):
            side.tensors[keys] = value
        else:
            side.values[keys] = value
    return side


def _flat(path: Path, root: Node) -> Iterator[tuple[Keys, Node]]:
    """Each tensor and plain value below the root; a list of plain values is one as well."""
    work: list[tuple[Keys, Node]] = [((), root)]
    for _ in range(_MOST):
        if not work:
            return
        keys, node = work.pop()
        tensor = tensor_of(node)
        if tensor is not None and (tensor.storage or tensor.layout == "meta"):
            yield keys, tensor
            node = Tuple(tensor.call.args.elements[4:5] if tensor.layout == "quantized" else [])
        elif isinstance(node, ATOMS):
            yield keys, node
        elif isinstance(node, List | Tuple) and all(isinstance(x, ATOMS) for x in node.elements):
            yield keys, tuple(node.elements)
        elif isinstance(node, Global | Storage):
            yield keys, node.path if isinstance(node, Global) else f"storage of {node.nbytes} bytes"
        if len(keys) > _DEEPEST:
            break
        work += [((*keys, step), part) for step, part in reversed(list(_parts(node)))]
    raise CorruptCheckpoint(f"{path} says the same thing too many times over to be compared")


def _parts(node: Node) -> Iterator[tuple[str, Node]]:
    """What a node holds; a state_dict's own attributes are no part of it."""
    if isinstance(node, List | Tuple) and not all(isinstance(x, ATOMS) for x in node.elements):
        yield from ((str(index), element) for index, element in enumerate(node.elements))
    elif isinstance(node, Dict | Call):
        if isinstance(node, Call) and node.path != "collections.OrderedDict":
            yield from (("", part) for part in (node.function, node.args))
        for key, value in node.pairs:
            yield str(key) if isinstance(key, str) else short(key), value


def weights_alone(side: Side) -> Side:
    """The weights without what is around them."""
    tensors = {keys[-1:]: t for keys, t in side.tensors.items() if keys[:-1] == side.place}
    return replace(side, place=(), lost=[], tensors=tensors, values={})


def renamed(side: Side, like: Side) -> tuple[Side, str]:
    """The first side under the other's names, if a rule leads there, and that rule."""
    names, wanted = side.names(), like.names()
    if side.place != like.place or names.keys() == wanted.keys():
        return side, ""
    found = match(names, wanted)
    if not found.matched or all(old == new for old, new in found.names.items()):
        return side, ""
    tensors = {
        (*keys[:-1], found.names.get(keys[-1], keys[-1])) if keys[:-1] == side.place else keys: t
        for keys, t in side.tensors.items()
    }
    return replace(side, tensors=tensors), found.rule
