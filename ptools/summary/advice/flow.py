"""Which operation reads what another one wrote: one forward of a stand-in, tensors numbered."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from ptools.inputs import Inputs
from ptools.summary.attribution import ModuleStack, tensors_in
from ptools.summary.ladder import Run, Subject, staged
from ptools.summary.trace import Call, Recorder, plain_kernels, quiet


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor between two writes to it; `root` is the value that it is a view of, or itself."""

    number: int
    root: int
    shape: tuple[int, ...]
    itemsize: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True, slots=True)
class Step:
    """One operation; `args` are its positional ones with a Value in the place of each tensor.

    `in_attention`: a part of `scaled_dot_product_attention`, which GPUs run as one kernel.
    """

    call: Call
    func: Any
    args: tuple[Any, ...]
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    in_attention: bool

    @property
    def macs(self) -> int:
        return (self.call.flops or 0) // 2


@dataclass
class Flow:
    """The steps of a forward in order, parameters by value, and the values that leave it."""

    steps: list[Step] = field(default_factory=list)
    parameters: dict[int, str] = field(default_factory=dict)
    outputs: frozenset[int] = frozenset()

    @property
    def macs(self) -> int:
        return sum(step.macs for step in self.steps)

    @property
    def bytes(self) -> int:
        return sum(step.call.bytes for step in self.steps)

    def readers(self) -> dict[int, list[Step]]:
        """The steps that read a value, by its number; a view of it is a reader too."""
        found: dict[int, list[Step]] = {}
        for step in self.steps:
            for number in {value.number for value in step.reads}:
                found.setdefault(number, []).append(step)
        return found


def observe(run: Run, subject: Subject, inputs: Inputs) -> Flow:
    """Run the forward once more, on the rung where `run` succeeded, without gradients."""
    with staged(run.rung, subject, inputs) as (model, found, args, kwargs):
        recorder = FlowRecorder(ModuleStack(found), on_meta=run.rung == "meta")
        names = {recorder.value(p).root: name for name, p in model.named_parameters()}
        with quiet(), plain_kernels(), torch.no_grad(), recorder, recorder.attention:
            output = model(*args, **kwargs)
        made = frozenset(recorder.value(t).root for t in tensors_in(output))
    return Flow(recorder.steps, names, made)


class FlowRecorder(Recorder):
    """A Recorder that also numbers what each operation reads and writes."""

    def __init__(self, modules: ModuleStack, *, on_meta: bool) -> None:
        super().__init__(modules, on_meta=on_meta)
        self.attention = _Attention()
        self.steps: list[Step] = []
        self._known = WeakTensorKeyDictionary()
        self._count = itertools.count()
        self._seen = 0

    def value(self, tensor: torch.Tensor, root: int | None = None) -> Value:
        """What the tensor holds now; if it is not known, a new value, a view of `root`."""
        known: Value | None = self._known.get(tensor)
        if known is None:
            number = next(self._count)
            known = Value(
                number,
                number if root is None else root,
                tuple(tensor.shape),
                tensor.element_size(),
            )
            self._known[tensor] = known
        return known

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = tree_map_only(torch.Tensor, self.value, args)
        named = tree_map_only(torch.Tensor, self.value, kwargs or {})
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if len(self.calls) == self._seen:
            return out  # it was decomposed, and its parts are recorded
        self._seen = len(self.calls)
        if func.namespace == "prim":
            return out  # a fake tensor is asked for its device
        reads = tuple(leaf for leaf in tree_leaves((given, named)) if isinstance(leaf, Value))
        root = reads[0].root if reads and is_view(func) else None
        if func._schema.is_mutable:
            for tensor in tensors_in(out):
                self._known.pop(tensor, None)
        writes = tuple(self.value(tensor, root) for tensor in tensors_in(out))
        step = Step(self.calls[-1], func, given, reads, writes, self.attention.inside)
        self.steps.append(step)
        return out


def is_view(func: Any) -> bool:
    """Whether the result is the argument's memory; `_unsafe_view` is, though not tagged so."""
    return bool(func.is_view) or func is torch.ops.aten._unsafe_view.default


class _Attention(TorchFunctionMode):
    """Knows whether `scaled_dot_product_attention` is running."""

    inside = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.inside = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.inside = False


def depths(steps: Sequence[Step], *, from_end: bool = False) -> list[int]:
    """For each step, how many counted ones the longest way to it has, itself included.

    With `from_end` the way is from it to where nothing reads the result any more.
    """
    found = [0] * len(steps)
    depth: dict[int, int] = {}
    order = range(len(steps))
    for index in reversed(order) if from_end else order:
        step = steps[index]
        before, after = (step.writes, step.reads) if from_end else (step.reads, step.writes)
        here = max((depth.get(value.root, 0) for value in before), default=0)
        here += step.macs > 0
        found[index] = here
        for value in after:
            depth[value.root] = max(here, depth.get(value.root, 0))
    return found
