"""What `summarize` returns: plain frozen data, with units in the names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ptools.files import shown_path

Rung = Literal["meta", "fake", "cpu", "parameters"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One registered module under one path.

    Counts without `own_` include the layers below. A parameter counts where it is met first;
    under its other names it is `tied` to that one.
    """

    path: str
    type: str
    depth: int
    kernel: str | None
    calls: int
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    parameters: int
    own_parameters: int
    trainable: int
    buffers: int
    bytes: int
    macs: int
    own_macs: int
    backward_macs: int
    activation_bytes: int | None = None
    tied: tuple[str, ...] = ()
    same_as: str | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


@dataclass(frozen=True)
class Operation:
    """All calls of one operation; `bytes` are what its calls read and wrote."""

    name: str
    calls: int
    macs: int
    backward_macs: int
    bytes: int


@dataclass(frozen=True)
class SourceLine:
    """What one line of Python costs, with all that it calls in torch."""

    file: str
    line: int
    code: str
    macs: int
    backward_macs: int


@dataclass(frozen=True)
class NotCounted:
    """An operation without a FLOP formula: its cost is missing from every total."""

    operation: str
    calls: int
    layer: str


@dataclass(frozen=True)
class Attempt:
    """A way of running the model that did not do, and where it ended if it `ran` at all."""

    rung: Rung
    reason: str
    layer: str | None = None
    file: str | None = None
    line: int | None = None
    ran: bool = True

    @property
    def where(self) -> str:
        place = f"{shown_path(self.file)}:{self.line}" if self.file else ""
        layer = f"layer {self.layer}" if self.layer else ""
        return ", ".join(part for part in (place, layer) if part)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of tensors alive at the peak of a training step in steady state (the second one).

    `temporary` is what backward and optimizer had made besides at that moment. `hidden` are
    operations that keep a workspace of their own until the backward, which can't be seen. It, what
    kernels allocate and free within themselves, the CUDA context and the caching allocator's
    slack come on top.
    """

    optimizer: str
    loss: str
    batch: int | None
    peak_bytes: int
    parameters: int
    buffers: int
    gradients: int
    optimizer_state: int
    inputs: int
    activations: int
    temporary: int
    phase: str
    layer: str | None
    after_forward_bytes: int
    hidden: tuple[str, ...] = ()
    largest_batch: int | None = None
    largest_batch_peak_bytes: int | None = None
    limit_bytes: int | None = None


@dataclass(frozen=True)
class Advice:
    """One thing to change: where, what it costs in this model, and what to do."""

    rule: str
    layers: tuple[str, ...]
    cost: str
    change: str


@dataclass(frozen=True)
class Summary:
    """A model's layers and what they cost, for one forward with `inputs`.

    MACs are multiply-accumulates (FLOPs / 2). They are None where nothing could be run, and a
    lower bound where `stopped` or `not_counted` is set. `rung` is how the forward was run.
    """

    model: str
    rung: Rung
    attempts: tuple[Attempt, ...]
    inputs: str | None
    input_source: str | None
    input_origin: str | None
    parameters: int
    trainable: int
    buffers: int
    bytes: int
    dtypes: dict[str, int]
    macs: int | None
    backward_macs: int | None
    layers: tuple[Layer, ...]
    operations: tuple[Operation, ...] = ()
    lines: tuple[SourceLine, ...] = ()
    not_counted: tuple[NotCounted, ...] = ()
    stopped: Attempt | None = None
    memory: TrainingMemory | None = None
    advice: tuple[Advice, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; tuples become lists."""
        return dataclasses.asdict(self)
