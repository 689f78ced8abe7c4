"""Why each batch norm that is left is left, in a clause that a person understands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from torch import nn

from ptools.fusion.prepare import is_norm
from ptools.fusion.prove import Proof
from ptools.fusion.regions import CONVOLUTIONS, MATRICES, SAME, SHAPES
from ptools.fusion.report import Left
from ptools.fusion.trace import Op, Trace, Value

_KERNELS = CONVOLUTIONS | MATRICES


def left(model: nn.Module, trace: Trace, proof: Proof, fused: nn.Module) -> tuple[Left, ...]:
    """The batch norms of a model that are still in the fused one, each with the first reason."""
    still = {name for name, m in fused.named_modules(remove_duplicate=False) if is_norm(m)}
    reasons = _Reasons(trace, proof)
    return tuple(
        Left(name, type(module).__name__, reasons.of(name, module))
        for name, module in model.named_modules()
        if is_norm(module) and name in still
    )


def grouped(left: Iterable[Left]) -> list[tuple[str, list[str]]]:
    """Names by reason, the most frequent reason first."""
    names = defaultdict(list)
    for each in left:
        names[each.reason].append(each.name)
    return sorted(names.items(), key=lambda item: -len(item[1]))


class _Reasons:
    """What a trace, and the proof made of it, say of single modules."""

    def __init__(self, trace: Trace, proof: Proof) -> None:
        self.trace = trace
        refused = reversed(proof.refused.items())
        self.refused = {name.rpartition(".")[0]: reason for name, reason in refused}

    def of(self, name: str, norm: nn.Module) -> str:
        """The first reason that applies."""
        if norm.training:
            return "in training mode"
        if norm.running_mean is None:
            return "keeps no running statistics"
        op, is_called = self._first_op(name)
        if op is None:
            return "did not run with these inputs"
        if not is_called:
            return "called as a function, not as a module"
        return self.refused.get(name) or self._by_dataflow(op)

    def _first_op(self, name: str) -> tuple[Op | None, bool]:
        """The first operation of a module on its input; whether the module itself ran it."""
        calls = [call for call in self.trace.calls if call.name == name]
        ran = (op for call in calls for op in self.trace.within(call))
        for op in filter(_reads_data, ran):
            return op, True
        for op in filter(_reads_data, self.trace.ops):
            if name in {(value.weight or "").rpartition(".")[0] for value in op.inputs}:
                return op, False
        return None, False

    def _by_dataflow(self, op: Op) -> str:
        source = next(value for value in op.inputs if not value.constant)
        chain = list(self._back(source))
        origin = self.trace.producer.get(chain[-1])
        if origin is not None and origin.name in _KERNELS:
            return self._after_kernel(origin, chain, op)
        return self._before_padding(op) or self._after_other(origin)

    def _back(self, value: Value) -> Iterator[Value]:
        """The value, and those that it is but another shape of."""
        yield value
        while (op := self.trace.producer.get(value)) is not None and _only_moves(op):
            value = op.inputs[0]
            yield value

    def _after_kernel(self, kernel: Op, chain: list[Value], norm: Op) -> str:
        kind = "convolution" if kernel.name in CONVOLUTIONS else "linear layer"
        onward = {norm, *(self.trace.producer[value] for value in chain)}
        others = [op for value in chain for op in self.trace.users[value] if op not in onward]
        if others:
            return f"its {kind}'s output is also used by {_names(others)}"
        if any(value in self.trace.returned for value in chain):
            return f"its {kind}'s output is returned or kept"
        weight = _weight_of(kernel, self.trace)
        if not weight.constant:
            return f"follows {short(kernel)} of two values, not a convolution"
        if weight.weight is None:
            made = self.trace.producer.get(weight)
            by = f" (by {short(made)})" if made is not None else ""
            return f"its {kind}'s weight is computed{by}"
        if len(chain) > 1:
            moves = _names(self.trace.producer[value] for value in chain[:-1])
            return f"{moves} stands between it and its {kind}"
        return f"not proven to follow its {kind} alone"

    def _before_padding(self, op: Op) -> str | None:
        """Where only the zeros around its output keep it from going into the next convolution."""
        users = self.trace.users[op.output]
        if len(users) != 1 or users[0].name not in CONVOLUTIONS or op.output in self.trace.returned:
            return None
        padding = users[0].arguments["padding"]
        call = self.trace.innermost(users[0])
        if call is None or not any(padding if isinstance(padding, list | tuple) else [padding]):
            return None
        last = call.name.rpartition(".")[2]
        return f"before {call.name if last.isdigit() else last}, which pads with zeros"

    def _after_other(self, origin: Op | None) -> str:
        if origin is None:
            return "follows an input of the model, not a convolution"
        if origin.name == "aten::cat":
            return "follows cat, which joins several outputs"
        return f"follows {short(origin)}, not a convolution"


def short(op: Op) -> str:
    """An operation as a person calls it: `max_pool2d`, `relu6`."""
    if op.name.startswith("aten::hardtanh") and op.arguments.get("max_val") == 6:
        return "relu6"
    name = op.name.rpartition("::")[2].strip("_")
    return name.removeprefix("native_").removesuffix("_with_indices")


def _reads_data(op: Op) -> bool:
    return any(not value.constant for value in op.inputs)


def _only_moves(op: Op) -> bool:
    return op.name in SAME | SHAPES or (op.name == "aten::cat" and len(op.inputs) == 1)


def _names(ops: Iterable[Op]) -> str:
    return " and ".join(dict.fromkeys(map(short, ops)))


def _weight_of(kernel: Op, trace: Trace) -> Value:
    """The weight of a convolution or of a matrix product, before it was transposed."""
    arguments = kernel.arguments
    if "weight" in arguments:
        weight: Value = arguments["weight"]
        return weight
    turned: Value = arguments["mat2"]
    turn = trace.producer.get(turned)
    return turn.inputs[0] if turn is not None and turn.name in SHAPES else turned
