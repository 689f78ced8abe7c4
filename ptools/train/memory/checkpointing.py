"""Activation checkpointing (Chen et al., https://arxiv.org/abs/1604.06174) of whole modules.

torch.utils.checkpoint does the work. What it leaves to its caller are the buffers: a BatchNorm
whose forward runs again would update its running statistics twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ptools.errors import UsageError

M = TypeVar("M", bound=nn.Module)
_Buffer = tuple[nn.Module, str, torch.Tensor | None]  # its owner, its name, and itself


def checkpoint_modules(model: M, types: type[nn.Module] | tuple[type[nn.Module], ...]) -> M:
    """Have every module of these types keep its input alone, and run again in the backward.

    The model is changed in place: such a module's class becomes one derived from it, as torch's
    own fully_shard does, so that names, state_dict, hooks, copies and pickles stay what they were.
    Gradients are the same to the last bit; random numbers and buffers are those of the first run,
    for which copies of the module's buffers are kept too. Hooks on what is within run twice.

    Args:
        types: as `Block`, or `(Block, nn.TransformerEncoderLayer)`; derived classes too.

    Returns:
        The model that was given.

    Raises:
        UsageError: the model has no such module, or one that was scripted.

    Example:
        >>> net = checkpoint_modules(resnet, Bottleneck)
    """
    chosen = [one for one in model.modules() if isinstance(one, types)]
    if not chosen:
        names = ", ".join(one.__name__ for one in (types if isinstance(types, tuple) else (types,)))
        raise UsageError(
            f"{type(model).__name__} has no module of type {names}", hint="print(model) shows them"
        )
    for module in chosen:
        _become(module, _Whole)
    return model


def checkpoint_sequential_sqrt(model: nn.Sequential, segments: int | None = None) -> nn.Sequential:
    """Have a Sequential keep the inputs of about sqrt(N) segments alone, instead of N activations.

    In the backward each segment runs again but the last, whose activations are needed at once.
    The model is changed in place, as by `checkpoint_modules`.

    Args:
        segments: by default sqrt(N) for N modules, to the nearest.

    Returns:
        The model that was given.

    Raises:
        UsageError: it is no Sequential, or has not so many modules.

    Example:
        >>> net = nn.Sequential(stem, checkpoint_sequential_sqrt(blocks), head)
    """
    if not isinstance(model, nn.Sequential) or type(model).forward is not nn.Sequential.forward:
        raise UsageError(
            f"{type(model).__name__} does not call its modules one after the other, as "
            "nn.Sequential does",
            hint="checkpoint_modules(model, types) takes any model",
        )
    count = len(model)
    segments = round(math.sqrt(count)) if segments is None else segments
    if not 1 <= segments <= count:
        raise UsageError(f"{segments} segments of {count} modules", hint=f"1 to {count}")
    model.segments = segments  # type: ignore[assignment]
    _become(model, _Segmented)
    return model


_DERIVED: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


class _Checkpointed(nn.Module):
    """What the classes derived from the user's have in common: they can be pickled."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        ours, theirs = type(self).__bases__
        return _blank, (ours, theirs), self.__getstate__()  # type: ignore[no-untyped-call]


class _Whole(_Checkpointed):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _checkpointed([self], super().forward, *args, **kwargs)


class _Segmented(_Checkpointed, nn.Sequential):
    segments: int

    def forward(self, input: Any) -> Any:
        modules = [*self]  # one that stands there twice is called twice
        bounds = [round(at * len(modules) / self.segments) for at in range(self.segments + 1)]
        for first, end in pairwise(bounds[:-1]):
            input = _checkpointed(modules[first:end], _run(modules[first:end]), input)
        return _run(modules[bounds[-2] :])(input)


def _run(modules: Sequence[nn.Module]) -> Callable[[Any], Any]:
    def run(value: Any) -> Any:
        for module in modules:
            value = module(value)
        return value

    return run


def _become(module: nn.Module, ours: type[_Checkpointed]) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(
            f"{module.original_name} was scripted, and cannot be checkpointed",
            hint="checkpoint the module that torch.jit.script was given",
        )
    if not isinstance(module, ours):
        module.__class__ = _derived(ours, type(module))


def _derived(ours: type[_Checkpointed], theirs: type[nn.Module]) -> type[nn.Module]:
    if (ours, theirs) not in _DERIVED:
        name, doc = f"Checkpointed{theirs.__name__}", {"__doc__": theirs.__doc__}
        _DERIVED[ours, theirs] = type(name, (ours, theirs), doc)
    return _DERIVED[ours, theirs]


def _blank(ours: type[_Checkpointed], theirs: type[nn.Module]) -> nn.Module:
    kind = _derived(ours, theirs)
    return kind.__new__(kind)


def _checkpointed(
    modules: Sequence[nn.Module], forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """What forward returns; in the backward it runs again."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():  # the compiler itself sees that buffers are written once
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    before = _Buffers(modules)

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), before

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


class _Buffers:
    """A block in which modules have copies of their buffers as these were when it was made.

    All buffers, since a batch norm writes to them without telling autograd's version counters.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._owners = [part for one in modules for part in one.modules() if part._buffers]
        self._before = _copies(_buffers_of(self._owners))

    def __enter__(self) -> None:
        self._now = _buffers_of(self._owners)
        _give(_copies(self._before))  # a graph that is kept comes here again

    def __exit__(self, *error: object) -> None:
        _give(self._now)
        del self._now


def _buffers_of(owners: Sequence[nn.Module]) -> list[_Buffer]:
    return [(one, name, value) for one in owners for name, value in one._buffers.items()]


def _copies(buffers: Sequence[_Buffer]) -> list[_Buffer]:
    """Two owners of one buffer have one copy."""
    copies: dict[int, torch.Tensor] = {}
    for _, _, value in buffers:
        if value is not None and id(value) not in copies:
            copies[id(value)] = value.detach().clone()
    return [(owner, name, copies.get(id(value))) for owner, name, value in buffers]


def _give(buffers: Sequence[_Buffer]) -> None:
    for owner, name, value in buffers:
        owner._buffers[name] = value
