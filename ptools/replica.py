"""A stand-in for the user's model: the same structure and code, other tensors.

Everything is run on a stand-in, so that nothing a forward does (cached attributes, counters,
running statistics, materialised lazy layers) can reach the model that was handed in.
"""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

Place = Callable[[torch.Tensor], torch.Tensor]

_SHARED = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size, type)
_EMPTY = frozenset((dict, OrderedDict, list, set))
_ATOMS = frozenset((*_SHARED, types.FunctionType, types.BuiltinFunctionType, types.ModuleType))


def replica(model: nn.Module, place: Place) -> nn.Module:
    """A copy of `model` in which each tensor t is place(t); ties, sharing and hooks are kept.

    What can't be copied (a lock, an open file) is shared with the original.
    """
    memo: dict[int, Any] = {}
    rest: list[tuple[dict[str, Any], str, Any]] = []  # attributes that may hold tensors or modules
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            memo[id(module)] = copy.deepcopy(module)
            continue
        memo[id(module)] = module.__new__(type(module))
        attributes = vars(memo[id(module)])
        for name, value in vars(module).items():
            kind = type(value)
            if kind in _ATOMS:
                attributes[name] = value
            elif kind in _EMPTY and not value:
                attributes[name] = kind()
            elif kind is tuple and _ATOMS.issuperset(map(type, value)):
                attributes[name] = value
            else:
                attributes[name] = None  # keeps the order
                rest.append((attributes, name, value))
    for tensor in _tensors(value for _, _, value in rest):
        if id(tensor) not in memo:
            memo[id(tensor)] = _placed(tensor, place)
    for attributes, name, value in rest:
        attributes[name] = _copied(value, memo)
    result: nn.Module = memo[id(model)]
    return result


def unwrapped(model: nn.Module) -> nn.Module:
    """Without `torch.compile`, DataParallel and DistributedDataParallel around it."""
    wrappers = ("OptimizedModule", "DataParallel", "DistributedDataParallel")
    while type(model).__name__ in wrappers:
        model = model.get_submodule("_orig_mod" if hasattr(model, "_orig_mod") else "module")
    return model


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, strides and dtype without memory, on device `meta`."""
    return torch.empty_like(tensor, device="meta")


def same_device(tensor: torch.Tensor) -> torch.Tensor:
    """Uninitialised, on the tensor's own device (CPU for `meta`): to be called under fake mode."""
    device = "cpu" if tensor.is_meta else tensor.device
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def cloned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in memory of their own."""
    return tensor.detach().clone()


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        for leaf in value.values() if type(value) is dict else tree_leaves(value):
            if isinstance(leaf, torch.Tensor):
                yield leaf


def _placed(tensor: torch.Tensor, place: Place) -> torch.Tensor:
    if is_lazy(tensor):
        device = place(torch.empty(0)).device
        kind: Any = type(tensor)
        lazy: torch.Tensor = kind(requires_grad=tensor.requires_grad, device=device)
        return lazy
    placed = place(tensor)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(placed, requires_grad=tensor.requires_grad)
    return placed


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) is dict:  # parameters, buffers, children: nearly all values are in the memo
        return {
            key: memo[id(item)] if id(item) in memo else _copied(item, memo)
            for key, item in value.items()
        }
    try:
        return copy.deepcopy(value, memo)
    except Exception:
        return value
