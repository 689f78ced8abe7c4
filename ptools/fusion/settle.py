"""Make changes in copies of a model, and keep those with which its output stays the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from ptools.errors import PtoolsError
from ptools.fusion.affine import Kernel
from ptools.fusion.precision import dtype_of, reference_of, tolerance_for
from ptools.fusion.report import Difference
from ptools.fusion.steps import Step
from ptools.fusion.trials import Trial
from ptools.fusion.verify import difference, has_numbers, worst
from ptools.replica import cloned, replica


@dataclass(frozen=True)
class Change:
    """A step, and the weights that it puts in place."""

    step: Step
    kernel: Callable[[], Kernel] | None = None

    def apply(self, model: nn.Module) -> None:
        """Change the model."""
        self.step.apply(model, self.kernel() if self.kernel else None)


class Bench:
    """A model with inputs for it, and the outputs that every changed copy must give."""

    def __init__(self, model: nn.Module, tries: list[Trial], wanted: float | None) -> None:
        """`wanted` is the tolerance, or None for what the model's dtype needs."""
        self.model = model
        self.tries = tries
        self.wanted = wanted
        self.expected, self.unfused = reference_of(replica(model, cloned), tries)
        least = tolerance_for(dtype_of(model), self.unfused)
        self.tolerance = least if wanted is None else wanted
        self._check_says_something()

    def _check_says_something(self) -> None:
        """What can't be compared can't be shown to be equal."""
        if not any(map(has_numbers, self.expected)):
            raise PtoolsError(
                "the model's output holds no finite number, so nothing can be compared",
                hint="are its weights finite, and are these inputs that it is meant for?",
            )
        copy = replica(self.model, cloned)
        first, second = (self.tries[0].run(copy) for _ in range(2))
        if not (apart := difference(first, second)).relative <= self.tolerance:
            raise PtoolsError(
                f"two runs with one input differ by {apart.relative:.1g} of the output's spread",
                hint="a random number generator of its own, or a state? It has to be still",
            )

    def changed(self, changes: Sequence[Change]) -> nn.Module:
        """A copy of the model with the changes made."""
        copy = replica(self.model, cloned)
        for change in changes:
            change.apply(copy)
        return copy

    def difference(self, model: nn.Module) -> Difference:
        """How far another model's outputs are from those expected, the worst of all inputs."""
        pairs = zip(self.expected, self.tries, strict=True)
        return worst(difference(expected, trial.run(model)) for expected, trial in pairs)

    def sound(self, changes: list[Change], kept: Sequence[Change] = ()) -> list[Change]:
        """The changes that can be added to those kept, found by halving."""
        if not changes or self._holds([*kept, *changes]):
            return changes
        if len(changes) == 1:
            return []
        half = len(changes) // 2
        first = self.sound(changes[:half], kept)
        return first + self.sound(changes[half:], [*kept, *first])

    def _holds(self, changes: Sequence[Change]) -> bool:
        try:
            return self.difference(self.changed(changes)).relative <= self.tolerance
        except Exception:  # whatever the user's code raises without what was taken from it
            return False
