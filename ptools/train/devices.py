"""Nested batches on a device, whatever they are made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map


def to_device(batch: Any, device: torch.device) -> Any:
    """The same structure with everything on a device that can be; see `moved`."""

    def move(leaf: Any) -> Any:
        # From pinned memory to a GPU nothing is waited for; elsewhere it could be read too early.
        if isinstance(leaf, torch.Tensor):
            return leaf.to(device, non_blocking=device.type == "cuda")
        return leaf.to(device)

    return moved(batch, move)


def moved(batch: Any, move: Callable[[Any], Any]) -> Any:
    """The same structure with everything moved that can be: tensors, and what else has a `to`.

    It may lie in lists, tuples, namedtuples, dicts and other mappings; the rest stays as it is.
    """

    def leaf_moved(leaf: Any) -> Any:
        if _is_movable(leaf):
            return move(leaf)
        if isinstance(leaf, Mapping) and hasattr(leaf, "update"):  # a kind of dict of one's own
            clone = copy.copy(leaf)
            clone.update({key: moved(value, move) for key, value in leaf.items()})
            return clone
        return leaf

    return tree_map(leaf_moved, batch, is_leaf=_is_movable)


def tensors(batch: Any) -> Iterator[torch.Tensor]:
    """The tensors that lie in such a structure."""
    for leaf in tree_leaves(batch):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from tensors(dict(leaf))


def _is_movable(one: Any) -> bool:
    return hasattr(one, "to") and not isinstance(one, type)
