"""Find the weights in what people save around them: `state_dict`, `model`, `params_ema`, ..."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ptools.checkpoint.pickles.nodes import Call, Dict, Node, mapping
from ptools.checkpoint.pickles.tensors import Tensor, named_tensors
from ptools.errors import PtoolsError, UsageError

# What people call the weights, the likeliest first.
_USUAL = (
    "state_dict model_state_dict model module net network weights params student generator".split()
)
_EMA = re.compile(r"(^|[._-])(ema|teacher|averaged|swa|shadow)([._-]|$)|ema$|^ema", re.IGNORECASE)
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|rng|^(loops|hyper_parameters|config)", re.I)
_DEPTH = 4  # levels of dicts in dicts


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A dict of tensors in a checkpoint, and the keys that lead there; none: it is the root."""

    keys: tuple[str, ...]
    node: Dict | Call

    @property
    def where(self) -> str:
        return ".".join(self.keys)

    @property
    def is_ema(self) -> bool:
        return bool(_EMA.search(self.where))

    @property
    def label(self) -> str:
        return self.where or "the file itself"

    def tensors(self) -> dict[str, Tensor]:
        return named_tensors(self.node)


def find_weights(root: Node) -> list[Weights]:
    """The dicts of tensors in a tree, in its order; optimizer state is not among them."""
    found = [Weights(keys, node) for keys, node in _dicts(root) if _is_weights(node)]
    if len(found) > 1 and not found[0].keys:
        inner = max(len(weights.tensors()) for weights in found[1:])
        if len(found[0].tensors()) < inner:  # a stray tensor beside the state_dict
            found = found[1:]
    outer = {weights.keys for weights in found}
    return [weights for weights in found if not _parents(weights.keys) & outer]


def choose_weights(found: Sequence[Weights], ema: bool) -> Weights:
    """The weights to take: those under the likeliest name, or with `ema` their moving average.

    Raises:
        PtoolsError: there are none.
        UsageError: there is no moving average.
    """
    if not found:
        raise PtoolsError("the checkpoint holds no weights", hint="see: ptools fix-ckpt info CKPT")
    candidates = [weights for weights in found if weights.is_ema == ema]
    if ema and not candidates:
        there = f"there is {', '.join(weights.where for weights in found)}"
        hint = there if found[0].keys else "the file is one state_dict: leave out --ema"
        raise UsageError("there are no EMA weights", hint=hint)
    return min(candidates or found, key=_rank)


def _rank(weights: Weights) -> tuple[int, int]:
    name = weights.keys[-1] if weights.keys else ""
    place = _USUAL.index(name) if name in _USUAL else len(_USUAL)
    return place, -sum(tensor.nbytes for tensor in weights.tensors().values())


def _dicts(root: Node) -> Iterator[tuple[tuple[str, ...], Dict | Call]]:
    """The dicts in dicts, outer ones first."""
    level: list[tuple[tuple[str, ...], Node]] = [((), root)]
    for _ in range(_DEPTH):
        below = []
        for keys, node in level:
            if mapping(node) is None or any(_NOT_WEIGHTS.search(key) for key in keys):
                continue
            yield keys, node
            for key, value in mapping(node) or ():
                if isinstance(key, str) and mapping(value) is not None:
                    below.append(((*keys, str(key)), value))
        level = below


def _is_weights(node: Node) -> bool:
    """Mostly tensors; buffers as numbers and extra state may lie among them."""
    keys = [key for key, _ in mapping(node) or () if not is_extra_state(key)]
    return len(named_tensors(node)) * 2 > len(keys)


def is_extra_state(key: Node) -> bool:
    """Whether a key of a state_dict is for what a module's `get_extra_state` gave, of any kind."""
    return isinstance(key, str) and key.endswith("_extra_state")


def _parents(keys: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {keys[:end] for end in range(len(keys))}
