"""Ask the model itself whether it would load the weights, without loading any."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ptools.checkpoint.edit import metadata_of
from ptools.checkpoint.names.matching import Match, Shapes
from ptools.checkpoint.pickles.nodes import Call, Dict, mapping
from ptools.checkpoint.pickles.tensors import Tensor

if TYPE_CHECKING:
    from torch import nn


def shapes_of(model: Any) -> Shapes:
    """Names and shapes of a module's state_dict, of a state_dict, or of a dict of shapes."""
    entries = model.state_dict() if hasattr(model, "state_dict") else model
    shapes = {name: getattr(value, "shape", value) for name, value in entries.items()}
    return {name: tuple(shape) for name, shape in shapes.items() if isinstance(shape, tuple)}


def proven(match: Match, model: Any, node: Dict | Call, tensors: Mapping[str, Tensor]) -> Match:
    """The match as the model's own `load_state_dict` sees it.

    Modules may fill in or rename what an older version of theirs saved (BatchNorm's
    `num_batches_tracked`, densenet's layers); names and shapes alone do not tell.
    """
    import torch

    if match.mismatched or not isinstance(model, torch.nn.Module):
        return match
    state: Any = {
        name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype), device="meta")
        for name, tensor in tensors.items()
        if hasattr(torch, tensor.dtype)
    }
    state = _OrderedState(state)
    state._metadata = _versions(node)
    try:
        result = _shell(model).load_state_dict(state, strict=False, assign=True)
    except Exception:  # a hook of the user's that needs values: then names and shapes decide
        return match
    return replace(
        match, missing=tuple(result.missing_keys), unexpected=tuple(result.unexpected_keys)
    )


def add_tied(match: Match, model: Any, node: Dict | Call) -> tuple[Match, dict[str, str]]:
    """Add the names that the model has for a tensor which the checkpoint holds under another.

    Hugging Face saves such a tensor once. Returns the match then, and for each name the other.
    """
    if not match.missing or not hasattr(model, "state_dict"):
        return match, {}
    wrong = {name for name, _, _ in match.mismatched}
    values = {name: value for name, value in node.pairs if name not in wrong}
    entries = model.state_dict(keep_vars=True)
    names_of: dict[int, list[str]] = {}
    for name, entry in entries.items():
        names_of.setdefault(id(entry), []).append(name)
    tied = {}
    for name in match.missing:
        if known := [other for other in names_of.get(id(entries[name]), []) if other in values]:
            tied[name] = known[0]
    node.pairs.extend((name, values[other]) for name, other in tied.items())
    missing = tuple(name for name in match.missing if name not in tied)
    return replace(match, missing=missing, matched=match.matched + len(tied)), tied


class _OrderedState(dict[str, Any]):
    """A state_dict: a dict that can have `_metadata`."""

    _metadata: dict[str, dict[str, int]]


def _shell(model: nn.Module) -> nn.Module:
    """A copy of the module on meta, so that nothing of the user's is touched."""
    import torch

    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return deepcopy(model, memo)


def _versions(node: Dict | Call) -> dict[str, dict[str, int]]:
    return {
        prefix: {key: value for key, value in mapping(entry) or () if isinstance(value, int)}
        for prefix, entry in metadata_of(node) or ()
        if isinstance(prefix, str)
    }
