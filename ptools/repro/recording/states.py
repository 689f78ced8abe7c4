"""All that a training has learnt: parameters, gradients, what optimizers keep, buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ptools.program.clock import held_by
from ptools.program.modules import Modules
from ptools.repro.events import Value
from ptools.repro.recording.digests import Digester
from ptools.repro.recording.leaves import number, value_of

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
        **_kept_by_kind(optimizers),
        "buffers": [one for root in roots for one in root.buffers()],
    }
    return _rates(optimizers) + [
        Value(f"{kind}{name}", f"{len(some)} tensors", digester.of_all(some), (), numbers)
        for name, tensors in groups.items()
        for kind, some in _by_kind(tensors)
        for numbers in [() if kind else digester.numbers(some)]
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


def _by_kind(tensors: list[torch.Tensor]) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Integers by themselves: they are equal or not."""
    floating = [one for one in tensors if one.is_floating_point() or one.is_complex()]
    others = [one for one in tensors if not (one.is_floating_point() or one.is_complex())]
    yield from ((kind, some) for kind, some in (("", floating), ("integer ", others)) if some)


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


def _kept_by_kind(optimizers: Optimizers) -> dict[str, list[torch.Tensor]]:
    """The same, by name alone: each kind has a size of its own."""
    found: dict[str, list[torch.Tensor]] = {}
    for (_, what), tensor in _kept(optimizers):
        found.setdefault(f"{what} of the optimizer", []).append(tensor)
    return found


def _rates(optimizers: Optimizers) -> list[Value]:
    return [
        number(f"learning rate of group {index}", group["lr"])
        for owner in optimizers
        for index, group in enumerate(owner.param_groups)
        if isinstance(group.get("lr"), float)
    ]
