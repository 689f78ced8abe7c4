"""Which operation, memory or data a number that is not finite came from."""

from __future__ import annotations

from collections import Counter

import torch
from torch._C import _current_autograd_node, _current_graph_task_id

from ptools.debug.findings import TensorStats
from ptools.debug.finite import CHECKED, has_nan, is_finite
from ptools.debug.nan.births import Birth, Taint, Taints
from ptools.debug.nan.operations import Input, Operation
from ptools.debug.nan.stats import stats_of
from ptools.program.clock import Clock
from ptools.program.lines import Lines
from ptools.program.modules import Modules
from ptools.program.spots import caller_of_backward, in_optimizer, in_users_backward, spot

_DETAILED = 20  # births at one line whose numbers are counted; masks are born again and again
_KEPT = 200
_SHOWN = 6


class Origins:
    """The births of what is alive, by the memory that holds it."""

    def __init__(self, clock: Clock, modules: Modules, lines: Lines) -> None:
        self.nans = Taints()
        self.infs = Taints()
        self.memory = Taints()  # that nothing was written to
        self.births: list[Birth] = []  # the first NaN
        self._clock = clock
        self._modules = modules
        self._lines = lines
        self._born: Counter[object] = Counter()

    def not_finite(
        self, operation: Operation, inputs: list[Input], bad: list[torch.Tensor]
    ) -> None:
        """An operation returned tensors that are not finite."""
        bad += [one.tensor for one in inputs if one.written and not is_finite(one.tensor)]
        nans = [one for one in bad if has_nan(one)]
        infs = [one for one in bad if not any(one is nan for nan in nans)]
        for taints, kind, outs in (self.nans, "nan", nans), (self.infs, "inf", infs):
            if outs:
                birth = self._origin(operation, inputs, outs[0], kind)
                for one in outs:
                    taints.put(one, birth, _current_graph_task_id())

    def finite(self, inputs: list[Input]) -> None:
        """An operation returned finite tensors only."""
        for one in inputs:
            if one.written:
                self.nans.clear(one.tensor)
                self.infs.clear(one.tensor)
            elif (taint := self.nans.of(one.tensor)) and not taint.birth.absorbed:
                taint.birth.absorbed = has_nan(one.tensor)

    def unwritten(self, operation: Operation, out: torch.Tensor) -> None:
        """Memory was taken as it came."""
        if out.dtype in CHECKED and out.numel():
            line = spot(self._modules)
            steps, ticks = self._clock.steps, self._clock.ticks
            self.memory.put(out, Birth("nan", "memory", operation.name, line, steps, ticks))

    def brought(self, tensor: torch.Tensor, fact: str) -> None:
        """A batch of data has come that is not finite."""
        kind = "nan" if has_nan(tensor) else "inf"
        taints = self.nans if kind == "nan" else self.infs
        taint = taints.of(tensor)
        birth = taint.birth if taint else self._birth("", kind, "outside")
        birth.facts.append(fact)
        if birth.source == "outside":
            birth.source, birth.read = "batch", False
            birth.tensors = (stats_of("batch", tensor),)
        taints.put(tensor, birth)

    def _origin(
        self, operation: Operation, inputs: list[Input], out: torch.Tensor, kind: str
    ) -> Birth:
        """The birth that an input hands on, the first of several; else that of this operation."""
        found: list[Birth] = []
        kept: list[Birth] = []
        for one in inputs:
            taint = self._taint(operation, one, kind)
            if taint is None:
                continue
            if not operation.moves:
                self._read(taint.birth, operation)
            (found if one.written or _hands_on(taint) else kept).append(taint.birth)
        if found:
            return min(found, key=lambda birth: birth.number)
        birth = self._birth(operation.name, kind, "operation")
        birth.parents = tuple(dict.fromkeys(kept or self._infinities(inputs)))
        self._born[operation.name, birth.spot.inner] += 1
        if self._born[operation.name, birth.spot.inner] <= _DETAILED:
            birth.tensors = _numbers(out, inputs)
        if operation.name.endswith("_") and inputs and inputs[0].written:
            birth.facts.append(
                f"{operation.name} overwrites its first argument: what that held is gone"
            )
        return birth

    def _taint(self, operation: Operation, one: Input, kind: str) -> Taint | None:
        taints = self.nans if kind == "nan" else self.infs
        if one.written:  # what it held before is gone
            return taints.of(one.tensor)
        if is_finite(one.tensor) or (kind == "nan" and not has_nan(one.tensor)):
            return None
        return taints.of(one.tensor) or self._unknown(operation, one.tensor, kind)

    def _infinities(self, inputs: list[Input]) -> list[Birth]:
        return [
            taint.birth
            for one in inputs
            if (taint := self.infs.of(one.tensor)) is not None and not is_finite(one.tensor)
        ]

    def _birth(self, op: str, kind: str, source: str) -> Birth:
        node = _current_autograd_node() if _current_graph_task_id() != -1 else None
        birth = Birth(
            kind=kind,
            source=source,
            op=op,
            spot=self._lines.current(),
            step=self._clock.steps,
            tick=self._clock.ticks,
            node=node.name().rpartition("::")[2] if node else "",
            forward=self._lines.of(node) if node and in_users_backward() else None,
            backward=caller_of_backward(self._modules) if node else None,
            optimizer=in_optimizer(),
        )
        if kind == "nan" and len(self.births) < _KEPT:
            self.births.append(birth)
        return birth

    def _unknown(self, operation: Operation, tensor: torch.Tensor, kind: str) -> Taint:
        """A number that no operation made: from memory, or from outside of torch."""
        memory = self.memory.of(tensor) if kind == "nan" else None
        if memory is not None:
            birth = memory.birth
            birth.facts.append(f"nothing was written to it before {operation.name} read it")
            self.births.append(birth)
        else:
            birth = self._birth(operation.name, kind, "outside")
            birth.read = not operation.moves
            birth.tensors = (stats_of("input", tensor),)
            name = self._modules.name_of_memory(tensor)
            birth.source, birth.held_by = ("before", name) if name else ("outside", "")
        (self.nans if kind == "nan" else self.infs).put(tensor, birth)
        return Taint(birth, -1)

    def _read(self, birth: Birth, operation: Operation) -> None:
        """What came from outside is told by the first operation that computed with it."""
        if not birth.read:
            birth.read, birth.op, birth.spot = True, operation.name, self._lines.current()
            birth.step, birth.tick = self._clock.steps, self._clock.ticks


def _hands_on(taint: Taint) -> bool:
    """Whether a NaN that an input holds is the same story.

    In a backward, one that the forward has kept is not: it never came to the loss, or there would
    be no backward; that it comes back is news.
    """
    if _current_graph_task_id() in (-1, taint.task):
        return True
    node = _current_autograd_node()
    return node is None or "AccumulateGrad" in node.name()


def _numbers(out: torch.Tensor, inputs: list[Input]) -> tuple[TensorStats, ...]:
    """Of the result, and of what was given that is not the result."""
    given = [one for one in inputs if one.tensor is not out and one.tensor.dtype in CHECKED]
    return (
        stats_of("output", out),
        *(stats_of(one.name, one.tensor) for one in given[:_SHOWN]),
    )
