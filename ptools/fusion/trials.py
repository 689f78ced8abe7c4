"""Inputs to prove and verify with: found as `summary` finds them, then made of seeded noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ptools.errors import PtoolsError, UsageError
from ptools.guess import in_its_dtype
from ptools.inputs import Inputs, TensorSpec, from_value
from ptools.rng import preserve_rng
from ptools.search import Found, find_run, wants
from ptools.usercode import describe


@dataclass(frozen=True)
class Trial:
    """Arguments of one forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    label: str

    def inputs(self) -> Inputs:
        """The same as inputs that were given."""
        values = (*self.args, *self.kwargs.values())
        args, kwargs = from_value(values, "given", self.label).args, {}
        positional = len(self.args)
        kwargs = dict(zip(self.kwargs, args[positional:], strict=True))
        return Inputs(args[:positional], kwargs, "given", self.label)

    def run(self, model: nn.Module) -> Any:
        """What the model returns for them, without gradients and from one random state."""
        args, kwargs = tree_map_only(torch.Tensor, torch.clone, (self.args, self.kwargs))
        with torch.no_grad(), preserve_rng():
            torch.manual_seed(0)
            return model(*args, **kwargs)


@dataclass(frozen=True)
class Run:
    """One attempt to find inputs."""

    error: Exception | None
    other_inputs_may_do: bool = True


def find_inputs(
    model: nn.Module, inputs: Any, namespace: Mapping[str, Any], strict: bool
) -> tuple[Inputs, tuple[str, ...]]:
    """Inputs that the model runs with, and notes about them.

    Raises:
        UsageError: there are none, or those given do not fit.
        PtoolsError: the forward fails with the inputs given or declared.
    """

    def adapted(candidate: Inputs) -> Inputs:
        return in_its_dtype(candidate, model)

    def attempt(candidate: Inputs, patient: bool) -> Run:
        try:
            trial(model, candidate, seed=0).run(model)
        except Exception as error:
            return Run(error)
        return Run(None)

    found: Found[Run] = find_run(model, inputs, namespace, adapted, strict, attempt)
    if found.inputs is None or found.run is None:
        raise UsageError(found.notes[0])
    if found.run.error is not None:
        raise PtoolsError(
            f"the forward failed: {describe(found.run.error)}",
            hint=f"{wants(model)}; it was given {found.inputs}",
        ) from found.run.error
    return found.inputs, found.notes


def trials(model: nn.Module, inputs: Inputs) -> list[Trial]:
    """The inputs, and noise like them: of another batch size where the model takes it."""
    first = trial(model, inputs, seed=0)
    sizes = [spec.shape[0] for spec in inputs.specs() if spec.shape]
    for candidate in (inputs.with_batch(max(sizes, default=1) + 1), _anew(inputs)):
        second = trial(model, candidate, seed=1)
        try:
            second.run(model)
        except Exception:
            continue
        return [first, second]
    return [first]


def _anew(inputs: Inputs) -> Inputs:
    """The same shapes without the values."""
    args, kwargs = inputs.make(lambda spec: TensorSpec(spec.shape, spec.dtype))
    return replace(inputs, args=args, kwargs=kwargs)


def trial(model: nn.Module, inputs: Inputs, seed: int) -> Trial:
    """The inputs as tensors: normal noise, or indices that an embedding has."""
    args, kwargs = inputs.make(_maker(model, seed))
    given = all(spec.value is not None for spec in inputs.specs())
    return Trial(args, kwargs, str(inputs) if given else f"{inputs} (seed {seed})")


def _maker(model: nn.Module, seed: int) -> Callable[[TensorSpec], torch.Tensor]:
    first = next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0))
    generator = torch.Generator().manual_seed(seed)
    rows = (m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding))
    indices = min(rows, default=2)

    def make(spec: TensorSpec) -> torch.Tensor:
        if spec.value is not None:
            return spec.value.detach().clone().to(first.device)
        dtype = spec.dtype or torch.get_default_dtype()
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(spec.shape, generator=generator).to(first.device, dtype)
        return torch.randint(indices, spec.shape, generator=generator).to(first.device, dtype)

    return make
