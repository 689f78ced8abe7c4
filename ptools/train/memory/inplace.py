"""Activations that overwrite their input, where a check shows that nobody needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ptools.console import counted
from ptools.errors import PtoolsError, UsageError
from ptools.replica import cloned, replica, unwrapped
from ptools.rng import preserve_rng

# Not those for whose backward torch keeps a copy of what they overwrite: ReLU6, Hardtanh, SiLU,
# Hardswish, Hardsigmoid, Mish, Threshold. They would take time, and save nothing.
_KINDS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


@dataclass(frozen=True)
class InplaceReport:
    """What `inplace_activations` did.

    Args:
        changed: the names of the modules that overwrite their input now.
        refused: the names of those that do not, and why.
    """

    changed: tuple[str, ...]
    refused: dict[str, str]

    def __str__(self) -> str:
        names = f": {', '.join(self.changed)}" if self.changed else ""
        refused = [f"not {name}: {why}" for name, why in self.refused.items()]
        return "\n".join([f"{counted(len(self.changed), 'activation')} in place{names}", *refused])


def inplace_activations(model: nn.Module, example: Any) -> InplaceReport:
    """Set inplace=True for the activations and dropouts whose input nobody reads again.

    That is tried, on a copy of the model: once with the input of each spoiled behind it, where
    outputs, gradients, buffers and the example must stay the same bits, in training and in
    evaluation; and once in place, where autograd must not miss what was overwritten. What fails
    is found by bisection and left as it is. Functions, as F.relu, are never changed. A LeakyReLU
    or ELU saves a tensor of its size until the backward; a ReLU or a Dropout for a moment alone.

    Args:
        model: with the parameters frozen that will be, on any device.
        example: of its input: a tensor, a tuple of arguments, or a dict of them by keyword. Other
            ways through the model than this example takes are not tried.

    Raises:
        UsageError: no output of the model needs a gradient.
        PtoolsError: the model does not give the same result twice.

    Example:
        >>> print(inplace_activations(net, torch.randn(2, 3, 224, 224)))
    """
    net = unwrapped(model)
    named = {name: one for name, one in net.named_modules() if type(one) in _KINDS}
    names = [name for name, one in named.items() if not one.inplace]
    trials = _Trials(net, example)
    refused = {name: "the example did not reach it" for name in names if name not in trials.called}
    changed = trials.fit([], [name for name in names if name in trials.called], refused)
    for name in changed:
        named[name].inplace = True
    return InplaceReport(tuple(changed), {name: refused[name] for name in names if name in refused})


class _Trials:
    """Runs of copies of a model, compared with a run of it as it is."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.called: set[str] = set()
        self._model = model
        self._example = example
        self._plain = self._run([], spoil=False, train=True)
        self._evaluated = self._run([], spoil=False, train=False)
        if _difference(self._run([], spoil=False, train=True), self._plain, exact=True):
            raise PtoolsError(
                "the model does not give the same result twice from the same random numbers",
                hint="torch.use_deterministic_algorithms(True) names the operation that does not",
            )

    def fit(self, taken: list[str], names: list[str], refused: dict[str, str]) -> list[str]:
        """Those of some names that can be added to what is taken; why the others cannot."""
        why = self._objection([*taken, *names]) if names else None
        if why is None:
            return names
        if len(names) == 1:
            refused[names[0]] = why
            return []
        half = len(names) // 2
        first = self.fit(taken, names[:half], refused)
        return first + self.fit(taken + first, names[half:], refused)

    def _objection(self, names: Sequence[str]) -> str | None:
        for train, wanted in ((True, self._plain), (False, self._evaluated)):
            try:
                found = self._run(names, spoil=False, train=train)
                spoiled = self._run(names, spoil=True, train=train)
            except Exception as error:  # which it did not raise as it is
                return str(error).partition(";")[0].partition("\n")[0]
            if differs := _difference(spoiled, wanted, exact=True):
                return f"its input is read again: {differs}"
            if differs := _difference(found, wanted, exact=False):
                return f"in place it computes something else: {differs}"
        return None

    def _run(self, names: Sequence[str], spoil: bool, train: bool) -> dict[str, torch.Tensor]:
        """All numbers that a forward leaves behind, and a backward when training."""
        model = replica(self._model, cloned).train(train)
        modules = dict(model.named_modules())
        for name, module in modules.items():
            if spoil and name in names:
                module.forward = partial(_spoiling, module, module.forward)
            elif name in names:
                module.inplace = True
            module.register_forward_pre_hook(lambda *_, name=name: self.called.add(name))
        given = tree_map_only(torch.Tensor, _given, self._example)
        deterministic = torch.backends.cudnn.flags(deterministic=True, benchmark=False)
        with preserve_rng(), deterministic, torch.set_grad_enabled(train):
            torch.manual_seed(0)
            out = _called(model, given)
            outputs = [one for one in tree_leaves(out) if isinstance(one, torch.Tensor)]
            if train:
                _backward(outputs)
        return _numbers(model, given, outputs)


def _spoiling(module: nn.Module, forward: Any, input: torch.Tensor) -> torch.Tensor:
    """What an activation gives, whose input is worth nothing then.

    Autograd is not told, so that whoever reads it, computes with NaN instead of failing.
    """
    dropping = "Dropout" in type(module).__name__
    out: torch.Tensor = forward(input.clone())
    if module.training or not dropping:  # which in evaluation writes nothing
        input.data.fill_(float("nan"))
    return out


def _given(tensor: torch.Tensor) -> torch.Tensor:
    """A copy to run on; one that needs a gradient is no leaf, as the input of a larger model."""
    copy = cloned(tensor)
    if tensor.requires_grad:
        leaf = copy.requires_grad_()
        copy = leaf.clone()
        copy.leaf = leaf  # type: ignore[attr-defined]
    return copy


def _called(model: nn.Module, given: Any) -> Any:
    if isinstance(given, dict):
        return model(**given)
    return model(*given) if isinstance(given, tuple | list) else model(given)


def _backward(outputs: Sequence[torch.Tensor]) -> None:
    """From every output, each with a random gradient: sums may have none."""
    ends = [one for one in outputs if one.requires_grad]
    if not ends:
        raise UsageError(
            "no output of the model needs a gradient",
            hint="give it as it will be trained, and an example that reaches its parameters",
        )
    torch.autograd.backward(ends, [torch.randn_like(one) for one in ends])


def _numbers(
    model: nn.Module, given: Any, outputs: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor | None] = {}
    found |= {f"output {at} differs": one for at, one in enumerate(outputs)}
    inputs = [one for one in tree_leaves(given) if isinstance(one, torch.Tensor)]
    found |= {f"the model's input {at} is overwritten": one for at, one in enumerate(inputs)}
    leaves = {at: one.leaf.grad for at, one in enumerate(inputs) if hasattr(one, "leaf")}
    found |= {f"the gradient of input {at} differs": one for at, one in leaves.items()}
    for name, one in model.named_parameters():
        found[f"the gradient of {name} differs"] = one.grad
        found[f"{name} is overwritten"] = one
    for name, module in model.named_modules():
        for attribute, value in {**vars(module), **module._buffers}.items():
            kept = [] if attribute == "_parameters" else tree_leaves(value)
            tensors = [one for one in kept if isinstance(one, torch.Tensor)]
            title = f"{name}.{attribute}".lstrip(".")
            found |= {f"{title} {at} differs": one for at, one in enumerate(tensors)}
    return {what: one.detach() for what, one in found.items() if one is not None}


def _difference(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], exact: bool
) -> str | None:
    """The first thing that is not as it should be."""
    # An ELU in place rounds otherwise: its gradient is computed from its output.
    rtol, atol = (0.0, 0.0) if exact else (1e-3, 1e-4)
    for what, value in wanted.items():
        try:
            torch.testing.assert_close(found.get(what), value, rtol=rtol, atol=atol, equal_nan=True)
        except (AssertionError, TypeError):
            return what
    return None
