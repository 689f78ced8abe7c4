"""Find, in a trace, what could be one convolution: the widest maps of one source."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ptools.fusion.affine import Affine, composed, identity, passed, scaled, summed
from ptools.fusion.primitives import change_by, convolution, matrix, norm_statistics
from ptools.fusion.trace import Op, Trace, Value

NORMS = frozenset(
    f"aten::{name}"
    for name in (
        "batch_norm",
        "native_batch_norm",
        "_native_batch_norm_legit_no_training",
        "_batch_norm_no_update",
        "cudnn_batch_norm",
        "miopen_batch_norm",
    )
)
CONVOLUTIONS = frozenset(
    f"aten::{name}"
    for name in (
        "convolution",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
    )
)
MATRICES = frozenset(("aten::linear", "aten::addmm", "aten::mm"))
SAME = frozenset(
    f"aten::{name}"
    for name in ("clone", "contiguous", "alias", "detach", "dropout", "dropout_", "_to_copy", "to")
)
SHAPES = frozenset(
    f"aten::{name}"
    for name in (
        "flatten",
        "permute",
        "reshape",
        "reshape_as",
        "squeeze",
        "t",
        "transpose",
        "unsqueeze",
        "view",
        "_unsafe_view",
    )
)
_PER_CHANNEL = frozenset(("aten::add", "aten::sub", "aten::mul", "aten::div"))


class Regions:
    """The map of each value of a trace that is linear in one source by known operations."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.maps: dict[Value, Affine] = {}
        for op in trace.ops:
            found = self._map_of(op)
            if found is not None:
                self.maps[op.output] = found

    def widest(self) -> Iterator[Affine]:
        """Maps that no larger one contains, in order of execution."""
        taken: set[Op] = set()
        found = []
        for region in reversed(list(self.maps.values())):
            if region.op in taken or not taken.isdisjoint(region.ops):
                continue
            region = _trimmed(region)
            if region.convolutions and len(region.ops) > 1:
                found.append(region)
                taken.update(region.ops)
        yield from reversed(found)

    def _map_of(self, op: Op) -> Affine | None:
        if op.output.constant or not op.inputs:
            return None
        found = self._by_kind(op, op.name.removesuffix("_"))
        return found if found and found.value.dtype == found.source.dtype else None

    def _by_kind(self, op: Op, name: str) -> Affine | None:
        if op.name in CONVOLUTIONS:
            return self._after_a_scale(convolution(op))
        if op.name in MATRICES:
            return self._after_a_scale(matrix(op, self.trace))
        if op.name in NORMS:
            return self._norm(op)
        if op.name in SAME | SHAPES:
            return self._moved(op)
        if name == "aten::add" and (branches := self._sum(op)) is not None:
            return branches
        return self._per_channel(op, name) if name in _PER_CHANNEL else None

    def _inner(self, value: Value) -> Affine | None:
        """The map of a value that nothing else sees."""
        return self.maps.get(value) if self.trace.is_private(value) else None

    def _after_a_scale(self, base: Affine | None) -> Affine | None:
        if base is None:
            return None
        before = self._inner(base.source)
        axis = 1 if base.window.size else len(base.source.shape) - 1
        if before is None or before.convolutions or before.axis != axis:
            return base
        if base.window.size and before.source.shape != base.source.shape:
            return base
        return composed(before, base) or base

    def _norm(self, op: Op) -> Affine | None:
        statistics = norm_statistics(op)
        value = op.arguments["input"]
        if statistics is None or len(value.shape) < 2:
            return None
        inner = self._inner(value)
        if inner is None or inner.axis != 1:
            inner = identity(value)
        return scaled(inner, op, *statistics)

    def _moved(self, op: Op) -> Affine | None:
        inner = self._inner(op.inputs[0])
        if inner is None or op.arguments.get("train"):
            return None
        axis = inner.axis if op.name in SAME else _moved_axis(op, inner.axis)
        return None if axis is None else passed(inner, op, axis)

    def _sum(self, op: Op) -> Affine | None:
        a, b = op.arguments["self"], op.arguments["other"]
        if not isinstance(b, Value) or a is b or op.arguments["alpha"] != 1:
            return None
        for one in self._readings(a):
            for two in self._readings(b):
                both = summed(one, two, op) if one.ops or two.ops else None
                if both is not None:
                    return both
        return None

    def _readings(self, value: Value) -> Iterator[Affine]:
        """What a branch can be taken for: its map, or the source itself."""
        inner = self._inner(value)
        if inner is not None and inner.axis == 1:
            yield inner
        if len(value.shape) > 2:
            yield identity(value)

    def _per_channel(self, op: Op, name: str) -> Affine | None:
        """`x * gamma`, `x + beta` with weights that have one number a channel."""
        a, b = op.arguments["self"], op.arguments["other"]
        if op.arguments.get("alpha", 1) != 1 or op.arguments.get("rounding_mode"):
            return None
        if isinstance(b, Value) and a.constant and name in ("aten::add", "aten::mul"):
            a, b = b, a
        inner = self._inner(a)
        if not isinstance(b, Value):  # `0 + x`, with which sums begin
            adds_nothing = name == "aten::add" and b == 0
            return passed(inner, op, inner.axis) if inner and adds_nothing else None
        if a.constant or b.data is None or not b.weights or len(a.shape) < 2:
            return None
        inner = inner or identity(a)
        if not _is_per_channel(b.shape, a.shape, inner.axis):
            return None
        return scaled(inner, op, *change_by(name, b, a.shape[inner.axis]))


def _is_per_channel(small: tuple[int, ...], large: tuple[int, ...], axis: int) -> bool:
    """Whether broadcasting gives each channel one number."""
    aligned = (1,) * (len(large) - len(small)) + small
    if len(aligned) != len(large):
        return False
    return all(n == 1 or (i == axis and n == large[i]) for i, n in enumerate(aligned))


def _moved_axis(op: Op, axis: int) -> int | None:
    """Where the channels are after a view that leaves them whole."""
    before, after = op.inputs[0].shape, op.output.shape
    order = _order(op, len(before))
    if order is not None:
        return order.index(axis)
    for i, size in enumerate(after):
        if size == before[axis] and math.prod(after[:i]) == math.prod(before[:axis]):
            return i
    return None


def _order(op: Op, rank: int) -> list[int] | None:
    """The permutation of dimensions that an operation is, if it is one."""
    order = list(range(rank))
    if op.name == "aten::permute":
        return [dim % rank for dim in op.arguments["dims"]]
    if op.name in ("aten::transpose", "aten::t"):
        one, two = op.arguments.get("dim0", 0), op.arguments.get("dim1", 1)
        order[one], order[two] = order[two], order[one]
        return order
    return None


def _trimmed(region: Affine) -> Affine:
    """Without operations at its end that compute nothing."""
    while region.op is not None and region.op.name in SAME | SHAPES:
        region = region.parts[0]
    return region
