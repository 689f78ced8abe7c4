"""All that a training has learnt: parameters, gradients, what optimizers keep, buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ptools.program.clock import held_by
from ptools.program.modules import Modules
from ptools.repro.digests import Digester
from ptools.repro.events import Value
from ptools.repro.leaves import number, value_of

Optimizers = Sequence[torch.optim.Optimizer]


def state_in_short(optimizers: Optimizers, modules: Modules, digester: Digester) -> list[Value]:
    """The state, a value for each kind of tensors.

    Without optimizers, that of the models which were called.
    """
    roots = modules.roots()
    held = _held(optimizers) or [one for root in roots for one in root.parameters()]
    groups = {
        "parameters": held,
        "gradients": [one.grad for one in held if one.grad is not None],
        "optimizer state": [tensor for _, tensor in _kept(optimizers)],
        "buffers": [one for root in roots for one in root.buffers()],
    }
    return _rates(optimizers) + [
        Value(name, f"{len(tensors)} tensors", digester.of_all(tensors))
        for name, tensors in groups.items()
        if tensors
    ]


def state_by_name(optimizers: Optimizers, modules: Modules, digester: Digester) -> list[Value]:
    """The state, a value for each tensor."""
    roots = modules.roots()
    held = _held(optimizers) or [one for root in roots for one in root.parameters()]
    names = {
        id(one): modules.parameter_name(one) or f"parameter {at}" for at, one in enumerate(held)
    }
    named = [(names[id(one)], one) for one in held]
    named += [(f"gradient of {name}", one.grad) for name, one in named if one.grad is not None]
    named += [
        (f"{what} of {names[id(parameter)]}", tensor)
        for (parameter, what), tensor in _kept(optimizers)
    ]
    named += [(modules.parameter_name(one), one) for root in roots for one in root.buffers()]
    return _rates(optimizers) + [value_of(name, one, digester) for name, one in named]


def _held(optimizers: Optimizers) -> list[torch.Tensor]:
    return [one for owner in optimizers for one in held_by(owner)]


def _kept(
    optimizers: Optimizers,
) -> Iterator[tuple[tuple[torch.Tensor, str], torch.Tensor]]:
    """What optimizers keep for each parameter, by parameter and name."""
    for owner in optimizers:
        for one in held_by(owner):
            for key, kept in owner.state.get(one, {}).items():
                if isinstance(kept, torch.Tensor):
                    yield (one, key), kept


def _rates(optimizers: Optimizers) -> list[Value]:
    return [
        number(f"learning rate of group {index}", group["lr"])
        for owner in optimizers
        for index, group in enumerate(owner.param_groups)
        if isinstance(group.get("lr"), float)
    ]
