"""Say a region in the model's own modules: which convolution takes it on, which modules go."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import nn

from ptools.fusion.affine import Affine, Window
from ptools.fusion.primitives import convolution, matrix
from ptools.fusion.regions import CONVOLUTIONS, MATRICES, SHAPES
from ptools.fusion.steps import Fold
from ptools.fusion.trace import ModuleCall, Op, Trace, Value


class Inexpressible(Exception):
    """Why a region can't be said in modules."""


class Expression:
    """Regions of one trace as changes to the model that made it."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self.trace = trace
        self.modules = dict(model.named_modules())
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}

    def folds(self, region: Affine) -> Iterator[tuple[Affine, Fold | Inexpressible]]:
        """The region as one change; else its parts, as far as they can be said."""
        if len(region.ops) < 2 or not region.convolutions:
            return
        try:
            fold = self._fold(region)
            if fold.replaced:
                yield region, fold
        except Inexpressible as reason:
            if region.op is not None:
                yield region, reason
            for part in region.parts:
                yield from self.folds(part)

    def _fold(self, region: Affine) -> Fold:
        carrier = max(region.convolutions, key=_taps)
        call = self._carrying_call(carrier)
        self._check_bias(call, region)
        replaced = dict(self._replaced(region, carrier, call, frozenset(region.ops)))
        if any(f"{call.name}.".startswith(f"{name}.") for name in replaced):
            raise Inexpressible(f"{call.name} lies within what it would replace")
        for name in (call.name, *replaced):
            _check_is_plain(name, self.modules[name])
        window, rest = region.window, tuple(sorted(replaced.items()))
        if window == self._own_window(carrier):
            return Fold(call.name, (), (), window.groups, rest)
        _check_pads_plainly(call.name, self.modules[call.name])
        return Fold(call.name, window.size, window.padding, window.groups, rest)

    def _own_window(self, op: Op) -> Window:
        own = convolution(op) if op.name in CONVOLUTIONS else matrix(op, self.trace)
        assert own is not None  # it is part of a map
        return own.window

    def _carrying_call(self, carrier: Op) -> ModuleCall:
        """The call of the module whose own weight the convolution read, tied or not."""
        call = self.trace.innermost(carrier)
        weight = _weight_name(carrier, self.trace)
        module = self.modules[call.name] if call else None
        if call is None or self._name(module, "weight") != weight:
            raise Inexpressible(f"{weight} is used outside the call of its module")
        if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            raise Inexpressible(f"{call.name} is a {type(module).__name__}, no torch convolution")
        return call

    def _check_bias(self, call: ModuleCall, region: Affine) -> None:
        """What the module adds must be the bias that it has, since it gets another."""
        module = self.modules[call.name]
        own = {self._name(module, "weight"), self._name(module, "bias")} - {None}
        ops = (op for op in region.ops if call.holds(op) and self.trace.innermost(op) is call)
        if own != {name for op in ops for value in op.inputs for name in value.weights}:
            kind = type(module).__name__
            raise Inexpressible(f"{call.name} is a {kind} that uses other weights than its own")

    def _name(self, module: nn.Module | None, parameter: str) -> str | None:
        return self.names.get(id(getattr(module, parameter, None)))

    def _replaced(
        self, region: Affine, carrier: Op, keeper: ModuleCall, gone: frozenset[Op]
    ) -> Iterator[tuple[str, tuple[str, ...]]]:
        """What stands in the place of each module but the one that keeps the convolution."""
        op, parts = region.op, region.parts
        if op in region.convolutions or not parts:
            return
        if op is None:  # a scale before a convolution
            yield from self._replaced(parts[0], carrier, keeper, gone)
            yield from self._replaced(parts[1], carrier, keeper, gone)
            return
        if len(parts) == 2:
            kept, other = parts if carrier in parts[0].convolutions else reversed(parts)
            yield from self._silenced(other)
            yield from self._replaced(kept, carrier, keeper, gone)
            return
        yield from self._replaced(parts[0], carrier, keeper, gone)
        call = self.trace.innermost(op)
        if call is not keeper and not _only_moves(region):
            yield self._absorbed(op, call, gone)

    def _silenced(self, branch: Affine) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The modules that make up a branch: the last gives 0, the others nothing."""
        while branch.op and branch.op.name == "aten::add" and _only_moves(branch):
            branch = branch.parts[0]  # without the `0 +` of a sum, which may stay
        left, last = set(branch.ops), None
        outermost_first = sorted(self.trace.calls, key=lambda c: (c.start, -c.end, len(c.name)))
        for call in outermost_first:
            ops = self.trace.within(call)
            if ops and left.issuperset(ops):
                left.difference_update(ops)
                last = call
                yield call.name, ("0",) if call.output is branch.value else ()
        if left or last is None or last.output is not branch.value:
            raise Inexpressible("a branch of the sum is not made of modules alone")

    def _absorbed(
        self, op: Op, call: ModuleCall | None, gone: frozenset[Op]
    ) -> tuple[str, tuple[str, ...]]:
        """The module that ran the operation, and those of its children that remain."""
        if call is None or not call.name:
            raise Inexpressible(f"{_short(op)} is called by the model itself, not by a module")
        kind = type(self.modules[call.name]).__name__
        ops = self.trace.within(call)
        if any(each.name in SHAPES for each in ops):
            raise Inexpressible(f"{kind} changes the shape")
        rest = [each for each in ops if each not in gone]
        children = self._children(call) if rest else []
        covered = [each for child in children for each in self.trace.within(child)]
        if set(covered) != set(rest) or not self._is_chain(ops, rest, children, call):
            extra = rest[0] if rest else ops[-1]
            raise Inexpressible(f"{kind} does more than normalise ({_short(extra)})")
        prefix = f"{call.name}."
        return call.name, tuple(child.name.removeprefix(prefix) for child in children)

    def _is_chain(
        self, ops: Sequence[Op], rest: list[Op], children: list[ModuleCall], call: ModuleCall
    ) -> bool:
        """Whether the rest follows what was absorbed, each child reads the one before it."""
        absorbed = [op for op in ops if op not in rest]
        if rest and rest[0].index < absorbed[-1].index:
            return False
        value: Value | None = absorbed[-1].output
        for child in children:
            if not any(value in op.inputs for op in self.trace.within(child)):
                return False
            value = child.output
        return value is not None and value is call.output

    def _children(self, parent: ModuleCall) -> list[ModuleCall]:
        """The calls directly within a call, in order, of those that compute something."""
        inside = [
            call
            for call in self.trace.calls
            if call is not parent and parent.start <= call.start and call.end <= parent.end
            if call.name.startswith(f"{parent.name}.") and call.end > call.start
        ]
        return [
            call
            for call in sorted(inside, key=lambda call: call.start)
            if not any(call.name.startswith(f"{other.name}.") for other in inside)
        ]


def _check_is_plain(name: str, module: nn.Module) -> None:
    if nn.utils.parametrize.is_parametrized(module):
        raise Inexpressible(f"{name} is parametrised")
    for part in module.modules():
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        if any(hooks):
            raise Inexpressible(f"{name} has hooks")


def _check_pads_plainly(name: str, module: nn.Module) -> None:
    if getattr(module, "padding_mode", None) != "zeros" or isinstance(module.padding, str):
        raise Inexpressible(f"{name} pads in a way of its own, and would need another size")


def _only_moves(region: Affine) -> bool:
    """Whether its last operation changes the shape alone."""
    assert region.op is not None
    return region.kernel is region.parts[0].kernel


def _taps(op: Op) -> int:
    return 1 if op.name in MATRICES else math.prod(op.arguments["weight"].shape[2:])


def _weight_name(op: Op, trace: Trace) -> str:
    if op.name in CONVOLUTIONS or op.name == "aten::linear":
        value = op.arguments["weight"]
    else:
        value = trace.producer[op.arguments["mat2"]].inputs[0]
    assert value.weight is not None
    return str(value.weight)


def _short(op: Op) -> str:
    return op.name.removeprefix("aten::").rstrip("_")
