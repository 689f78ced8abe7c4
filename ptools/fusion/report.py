"""What fusing a model did, and how well it is proven."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from torch import nn

from ptools.fusion.steps import Fold, Own, Step
from ptools.fusion.trials import Trial


@dataclass(frozen=True)
class Left:
    """A batch norm that stays, and why."""

    name: str
    type: str
    reason: str


@dataclass(frozen=True)
class Difference:
    """How far an output is from the one expected, the worst of all inputs tried.

    `relative` is the largest absolute difference over the standard deviation of the expected
    output, `rms` the root of the mean square of all over the same. `top1` is the share of rows
    whose largest element is the same one, where the output has rows of scores; `rows` is how many
    there were.
    """

    max_abs: float
    relative: float
    cosine: float
    top1: float | None = None
    rows: int = 0
    rms: float = 0.0


@dataclass(frozen=True)
class Operations:
    """Operations that one forward runs, by kind, as they were observed."""

    convolutions: int
    linears: int
    norms: int
    additions: int
    total: int


@dataclass(frozen=True)
class Latency:
    """Seconds a forward: the median of interleaved runs, and the ends of its 95 % interval.

    `speedup` is before over after; its interval is the widest that those two allow.
    """

    before_seconds: tuple[float, float, float]  # median, low, high
    after_seconds: tuple[float, float, float]
    speedup: tuple[float, float, float]
    runs: int
    threads: int


@dataclass(frozen=True)
class Variant:
    """A further option for inference, measured beside the model that was handed in.

    `difference` is from the outputs of that model; `plain` the same for the option without
    fusing. `problem` says why it could not be measured.
    """

    name: str
    latency: Latency | None = None
    difference: Difference | None = None
    plain: Difference | None = None
    problem: str | None = None


@dataclass(frozen=True)
class FusionReport:
    """The fused `model`, the `steps` that made it, and what was measured of it.

    `example` is the first input tried, as the forward takes it.
    `provers` are those whose proof the steps rest on; `export_problem` says why torch.export could
    not be one. `equal` is whether `difference.relative` is within `tolerance`. For models of 16
    bits both are measured against the same model in float32, and `unfused` is the difference that
    the model has without fusing.
    """

    name: str
    model: nn.Module = field(repr=False, compare=False)
    example: Trial = field(repr=False, compare=False)
    inputs: str
    input_source: str
    trials: tuple[str, ...]
    provers: tuple[str, ...]
    export_problem: str | None
    steps: tuple[Step, ...]
    norms: int
    left: tuple[Left, ...]
    operations: tuple[Operations, Operations]  # before, after
    parameters: tuple[int, int]
    macs: tuple[int, int]
    difference: Difference
    tolerance: float
    unfused: Difference | None = None
    latency: Latency | None = None
    variants: tuple[Variant, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def folded(self) -> int:
        """Batch norms that are gone."""
        return self.norms - len(self.left)

    @property
    def merged(self) -> int:
        """Blocks of parallel branches that became one convolution."""
        return sum(
            isinstance(step, Fold) and any(rest == ("0",) for _, rest in step.replaced)
            for step in self.steps
        )

    @property
    def own(self) -> int:
        """Modules folded by a method of their own."""
        return sum(isinstance(step, Own) for step in self.steps)

    @property
    def equal(self) -> bool:
        """Whether the outputs are the same within the tolerance."""
        return self.difference.relative <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """As plain data; seconds, and parameters and multiply-accumulates as counts."""
        objects = ("model", "example", "steps")
        names = (each.name for each in fields(self) if each.name not in objects)
        steps = [step.to_dict() for step in self.steps]
        plain = {name: _plain(getattr(self, name)) for name in names}
        return plain | {"folded": self.folded, "equal": self.equal, "steps": steps}


def _plain(value: Any) -> Any:
    """Without dataclasses, and None for what JSON has no number for."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
