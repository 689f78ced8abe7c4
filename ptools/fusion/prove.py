"""What a trace proves: the changes that give the same numbers, and why others are not made."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from ptools.fusion.affine import Affine
from ptools.fusion.express import Expression, Inexpressible
from ptools.fusion.regions import Regions
from ptools.fusion.steps import Fold
from ptools.fusion.trace import ModuleCall, Op, Trace

Signature = frozenset[str]


@dataclass
class Proof:
    """Changes with the regions that they replace, and reasons by the weights they are about."""

    folds: dict[Fold, list[Affine]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # by name of a weight or buffer
    splittable: dict[Fold, str] = field(default_factory=dict)  # refused, but their parts may do

    def refuse(self, fold: Fold, reason: str) -> None:
        """Take a change out."""
        for region in self.folds.pop(fold):
            self.explain(region, reason)
            if any(part.convolutions and len(part.ops) > 1 for part in region.parts):
                self.splittable[fold] = reason

    def explain(self, region: Affine, reason: str) -> None:
        """Note why the norms of a region stay; the first reason is that of the widest region."""
        for name in signature(region):
            self.refused.setdefault(name, reason)


def prove(
    model: nn.Module,
    trace: Trace,
    assume_traced: bool = False,
    without: Mapping[Fold, str] | None = None,
) -> Proof:
    """The changes that one observed forward proves for the calls that it made.

    Where a change is refused, or is in `without` with a reason, the smaller ones that it was made
    of are looked at. `assume_traced` is that code which reads numbers off its data always goes the
    same way.
    """
    without = without or {}
    proof, expression = Proof(), Expression(model, trace)
    rules = _Rules(model, trace, assume_traced)
    found: dict[Fold, list[Affine]] = defaultdict(list)
    waiting = list(Regions(trace).widest())
    while waiting:
        folds = []
        for part, fold in (pair for region in waiting for pair in expression.folds(region)):
            if isinstance(fold, Inexpressible):
                proof.explain(part, str(fold))
            elif part not in found[fold]:
                found[fold].append(part)
                folds.append(fold)
        waiting = []
        for fold in dict.fromkeys(folds):
            regions = proof.folds[fold] = found[fold]
            if reason := without.get(fold) or rules.broken(fold, regions):
                proof.refuse(fold, reason)
                waiting += [part for region in regions for part in region.parts]
    proof.splittable.clear()  # it was done
    return proof


def signature(region: Affine) -> Signature:
    """The names of all weights and statistics that a region reads."""
    return frozenset().union(*(value.weights for op in region.ops for value in op.inputs))


def signatures(trace: Trace) -> set[Signature]:
    """Those of every map in a trace, however small."""
    return {signature(region) for region in Regions(trace).maps.values()}


def modules_of(fold: Fold) -> tuple[str, ...]:
    """The modules that a change touches."""
    return (fold.conv, *(name for name, _ in fold.replaced))


class _Rules:
    """What must hold for all of a model, beyond the calls that a change is about."""

    def __init__(self, model: nn.Module, trace: Trace, assume_traced: bool) -> None:
        self.trace = trace
        self.deciding: frozenset[str] = frozenset() if assume_traced else frozenset(trace.deciding)
        self.modules = dict(model.named_modules())
        self.calls = Counter(call.name for call in trace.calls)
        tensors = (*model.named_parameters(), *model.named_buffers())
        self.names = {id(tensor): name for name, tensor in tensors}
        self.weights = {value.weight: value for value in trace.users if value.weight}

    def broken(self, fold: Fold, regions: list[Affine]) -> str | None:
        """The reason why a change can't be made, if there is one."""
        return (
            self._other_calls(fold, regions)
            or self._other_readers(fold)
            or self._decision(regions[0])
        )

    def _other_calls(self, fold: Fold, regions: list[Affine]) -> str | None:
        for name in modules_of(fold):
            if (times := self.calls[name]) != len(regions):
                return f"{name} runs {times} times, {len(regions)} of them in this way"
        return None

    def _other_readers(self, fold: Fold) -> str | None:
        touched = modules_of(fold)
        inside = [call for call in self.trace.calls if call.name in touched]
        for name in {name for each in touched for name in self._weights_of(each, within=True)}:
            if (value := self.weights.get(name)) is None:
                continue
            readers = (op for op in self.trace.users[value] if not _within(op, inside))
            if value in self.trace.returned or not all(self._has(op, name) for op in readers):
                return f"{name} is also used elsewhere"
        return None

    def _has(self, op: Op, weight: str) -> bool:
        """Whether the module that runs an operation has the weight too: tied, it keeps it."""
        call = self.trace.innermost(op)
        return call is not None and weight in self._weights_of(call.name, within=False)

    def _weights_of(self, module: str, within: bool) -> set[str]:
        owner = self.modules[module]
        tensors = (*owner.parameters(recurse=within), *owner.buffers(recurse=within))
        return {self.names[id(tensor)] for tensor in tensors}

    def _decision(self, region: Affine) -> str | None:
        """Code around the region, or within, that may do something else with other data."""
        ops = region.ops
        around = [call for call in self.trace.calls if all(call.holds(op) for op in ops)]
        whole = max(around, key=lambda call: (call.start, -call.end))
        for call in self.trace.calls:
            beyond = call.start < whole.start or call.end > whole.end
            if call.name in self.deciding and not beyond and any(map(call.holds, ops)):
                kind = type(self.modules[call.name]).__name__
                return f"{kind} reads numbers off its data, and may do otherwise with others"
        return None


def _within(op: Op, calls: list[ModuleCall]) -> bool:
    return any(call.holds(op) for call in calls)
