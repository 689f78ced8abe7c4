"""Measure further options on a fused model, each on top of those before it that held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ptools.fusion import measure
from ptools.fusion.options import Cast, Option
from ptools.fusion.precision import adapted, dtype_of, reference_of, tolerance_for
from ptools.fusion.report import Difference, Variant
from ptools.fusion.trials import Trial
from ptools.fusion.verify import difference, worst
from ptools.replica import cloned, replica
from ptools.usercode import describe


def measure_variants(
    original: nn.Module,
    fused: nn.Module,
    options: Sequence[Option],
    tries: Sequence[Trial],
    timed: bool,
    tolerance: float | None = None,
) -> tuple[Variant, ...]:
    """Speed and error of each option; one with a `problem` is not to be used.

    Neither model is changed. Errors are measured against the original, in float32 where it has
    fewer bits; speed beside the original as it is.

    Args:
        tolerance: the user's own, instead of that of the dtype.
    """
    contest = _Contest(original, tries, timed, tolerance)
    kept: list[Option] = []
    variants: list[Variant] = []
    for option in options:
        variants.append(contest.variant(fused, kept, option))
        if variants[-1].problem is None:
            kept.append(option)
    return tuple(variants)


class _Contest:
    """The original, which every variant is compared with."""

    def __init__(
        self, original: nn.Module, tries: Sequence[Trial], timed: bool, tolerance: float | None
    ) -> None:
        self.original = original = replica(original, cloned)
        self.tries = tries
        self.timed = timed
        self.tolerance = tolerance
        self.expected, _ = reference_of(original, tries)

    def variant(self, fused: nn.Module, kept: Sequence[Option], option: Option) -> Variant:
        """The option on top of those kept."""
        try:
            variant = self._measured(fused, (*kept, option))
        except Exception as error:  # what torch has no kernel for, or the model's code can't do
            return Variant(option.name, problem=describe(error))
        if isinstance(option, Cast):
            return replace(variant, plain=self._plain(option))
        return variant

    def _measured(self, fused: nn.Module, options: tuple[Option, ...]) -> Variant:
        name = options[-1].name
        model = _changed(fused, options)
        if overflowing := _overflowing(fused, model):
            return Variant(name, problem=f"{overflowing} is too large for {name}")
        tries = [adapted(trial, *options) for trial in self.tries]
        error = self._difference(model, tries)
        allowed = self.tolerance
        if allowed is None:
            allowed = tolerance_for(dtype_of(model))
        problem = None
        if not error.relative <= allowed:
            problem = f"its error, {error.relative:.2g} of the spread, is above {allowed:.2g}"
        first, given = tries[0], self.tries[0]
        latency = None
        if self.timed:
            runs = (lambda: given.run(self.original)), (lambda: first.run(model))
            latency = measure.latency(*runs)
        return Variant(name, latency, error, problem=problem)

    def _plain(self, option: Option) -> Difference | None:
        """How far the option takes the model that is not fused."""
        try:
            tries = [adapted(trial, option) for trial in self.tries]
            return self._difference(_changed(self.original, (option,)), tries)
        except Exception:
            return None

    def _difference(self, model: nn.Module, tries: Sequence[Trial]) -> Difference:
        pairs: Any = zip(self.expected, tries, strict=True)
        return worst(difference(expected, trial.run(model)) for expected, trial in pairs)


def _changed(model: nn.Module, options: Sequence[Option]) -> nn.Module:
    copy = replica(model, cloned)
    for option in options:
        option.apply(copy)
    return copy


def _overflowing(model: nn.Module, changed: nn.Module) -> str | None:
    """The first weight that was finite and no longer is."""
    now = dict(changed.named_parameters())
    for name, weight in model.named_parameters():
        if torch.isfinite(weight).all() and not torch.isfinite(now[name]).all():
            return name
    return None
