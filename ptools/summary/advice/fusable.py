"""Work that a neighbour could do: point-wise operations, and biases before a BatchNorm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from ptools.files import human_bytes
from ptools.summary.advice.flow import Flow, Step, depths, is_view
from ptools.summary.advice.places import places
from ptools.summary.report import Advice

_POINTWISE_SHARE = 0.15  # of all bytes; less is in every network
_SAVED_SHARE = 0.05  # of all bytes
_UNTAGGED = ("hardswish", "_prelu_kernel", "rsub")
_NORMS = ("batch_norm", "layer_norm", "group_norm", "rms_norm")

Finding = tuple[float, Advice]


def pointwise_share(flow: Flow) -> Iterator[Finding]:
    """G4 of ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164): they cost bytes, not MACs.

    What fusing saves: the write and the reads of every result that goes from one of them, or
    from a normalisation, to others of them only; the reads alone where something else reads it.
    """
    chosen = [step for step in flow.steps if _is_pointwise(step)]
    moved, saved = sum(step.call.bytes for step in chosen), _saved(flow)
    if moved < _POINTWISE_SHARE * flow.bytes or saved < _SAVED_SHARE * flow.bytes:
        return
    by_path: Counter[str] = Counter()
    by_op: Counter[str] = Counter()
    for step in chosen:
        by_path[step.call.path] += step.call.bytes
        by_op[step.call.op.removeprefix("aten::").strip("_")] += step.call.bytes
    most = max(by_path.values())
    worth_naming = {path: size for path, size in by_path.items() if size > 0.01 * most}
    shares = ", ".join(f"{op} {size / flow.bytes:.0%}" for op, size in by_op.most_common(3))
    calls = "calls move" if len(chosen) > 1 else "call moves"
    cost = (
        f"{len(chosen)} point-wise {calls} {human_bytes(moved)}, "
        f"{moved / flow.bytes:.0%} of all bytes ({shares})"
    )
    change = (
        f"fused with each other and with the normalisation before them (torch.compile), the "
        f"forward moves up to {human_bytes(saved)} less, {saved / flow.bytes:.0%}"
    )
    yield saved / flow.bytes, Advice("element-wise (G4)", places(worth_naming), cost, change)


def bias_before_norm(flow: Flow) -> Iterator[Finding]:
    """A BatchNorm subtracts the channel's mean, and with it any bias added just before.

    Only where the very tensor that the layer returns enters the BatchNorm and nothing else, in
    every call that uses the bias (Ioffe and Szegedy 2015, arXiv 1502.03167, section 3.2).
    """
    readers = flow.readers()
    sizes: dict[str, float] = {}
    for number in flow.parameters:
        uses = readers.get(number, [])
        if uses and all(_is_cancelled(step, number, flow, readers) for step in uses):
            path = uses[0].call.path
            sizes[path] = next(v.shape[0] for v in uses[0].reads if v.number == number)
    if not sizes:
        return
    total = int(sum(sizes.values()))
    cost = f"{total:,} bias parameters that the BatchNorm right after subtracts again"
    yield 0.0, Advice("bias before BatchNorm", places(sizes), cost, "build with bias=False")


def _is_pointwise(step: Step) -> bool:
    name = step.func._overloadpacket.__name__
    if step.in_attention or is_view(step.func) or name == "clone":  # a copy, which may be needed
        return False
    if not any(value.shape for value in step.writes):  # BatchNorm counts its batches
        return False
    return torch.Tag.pointwise in step.func.tags or name.removesuffix("_") in _UNTAGGED


def _is_norm(step: Step) -> bool:
    return any(norm in step.call.op for norm in _NORMS)


def _saved(flow: Flow) -> int:
    """Bytes that need not move if a result stays in registers up to its point-wise readers.

    Only those count that run before the next convolution or matrix product behind the result:
    a residual connection, which is added much later, is read from memory in any case.
    """
    readers: dict[int, list[tuple[int, int, bool]]] = {}
    for step, depth in zip(flow.steps, depths(flow.steps), strict=True):
        if not is_view(step.func):
            for value in step.reads:
                entry = depth - (step.macs > 0), value.bytes, _is_pointwise(step)
                readers.setdefault(value.root, []).append(entry)
    saved = 0
    for step in flow.steps:
        if not step.writes or not (_is_pointwise(step) or _is_norm(step)):
            continue
        made = step.writes[0]
        reads = readers.get(made.root, [])
        first = min((depth for depth, _, _ in reads), default=0)
        fused = [size for depth, size, pointwise in reads if pointwise and depth == first]
        saved += sum(fused)
        if fused and len(fused) == len(reads) and made.root not in flow.outputs:
            saved += made.bytes
    return saved


def _is_cancelled(step: Step, bias: int, flow: Flow, readers: dict[int, list[Step]]) -> bool:
    """Whether `step` adds the bias and all that reads its result is one BatchNorm."""
    if step.call.op == "aten::convolution":
        added = step.args[2]
    elif step.call.op == "aten::addmm":
        added = step.args[0]
    else:
        return False
    (out,) = step.writes
    after = readers.get(out.number, [])
    return (
        added is not None
        and added.number == bias
        and out.root not in flow.outputs
        and len(after) == 1
        and "batch_norm" in after[0].call.op
        and after[0].args[0].number == out.number
    )
