"""What about a design costs speed, with the numbers counted for this model and this input.

The guidelines G1 to G4 are those of ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164). All shares
are of one forward; bytes are what operations read and write, as if nothing were cached or fused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from ptools.files import human_bytes
from ptools.inputs import Inputs
from ptools.summary.advice.flow import Flow, Step, depths, observe
from ptools.summary.advice.fusable import Finding, bias_before_norm, pointwise_share
from ptools.summary.advice.places import places
from ptools.summary.advice.products import Product, by_layer, products
from ptools.summary.ladder import Run, Subject
from ptools.summary.report import Advice

_MOST = 8
_EXCESS_SHARE = 0.03  # of all bytes; the bottlenecks of a ResNet-50 make 2.4%
_UNEQUAL = 2  # 1:2 costs 6% over the bound, less is not worth a word
_GROUPED_SHARE = 0.1  # of all bytes
_SMALL_SHARE = 0.05  # of all MACs
_MANY_CALLS = 30
_MANY_BRANCHES = 4  # query, key and value are three
_ODD_SHARE = 0.05  # of all MACs
_VOCABULARY = 1000  # that many outputs can be padded, and cost enough to


def advise(run: Run, subject: Subject, inputs: Inputs) -> tuple[Advice, ...]:
    """Costliest first, at most eight; empty if there is nothing worth a change.

    Makes one more forward on the rung where `run` succeeded, to see which tensor goes where.
    """
    flow = observe(run, subject, inputs)
    if not flow.macs or not flow.bytes:
        return ()
    found = list(products(flow))
    findings = [
        *unequal_widths(flow, found),
        *grouped(flow, found),
        *small_operations(flow),
        *parallel_branches(flow),
        *pointwise_share(flow),
        *bias_before_norm(flow),
        *odd_widths(flow, found),
    ]
    findings.sort(key=lambda finding: -finding[0])
    return tuple(advice for _, advice in findings[:_MOST])


def unequal_widths(flow: Flow, found: Sequence[Product]) -> Iterator[Finding]:
    """G1: of all 1x1 convolutions with the same MACs, that with c1 = c2 moves the fewest bytes.

    It moves hw(c1 + c2) + c1 c2 elements; the bound is 2 hw sqrt(c1 c2) + c1 c2. The first
    layer and the last are left out: data and task say how wide they are.
    """
    from_input, to_end = depths(flow.steps), depths(flow.steps, from_end=True)
    costs = []
    for p in found:
        unequal = max(p.inputs, p.outputs) > _UNEQUAL * min(p.inputs, p.outputs)
        inside = from_input[p.index] > 1 and to_end[p.index] > 1
        if p.pointwise and unequal and inside:
            least = 2 * math.sqrt(p.inputs * p.outputs)
            costs.append((p, p.positions * (p.inputs + p.outputs - least) * p.x.itemsize))
    most = max((cost for _, cost in costs), default=0.0)
    costs = [(p, cost) for p, cost in costs if cost > 0.01 * most]  # not those of pooled features
    excess = sum(cost for _, cost in costs)
    if excess < _EXCESS_SHARE * flow.bytes:
        return
    worst, _ = max(costs, key=lambda pair: pair[1])
    cost = (
        f"{human_bytes(excess)}, {excess / flow.bytes:.1%} of all bytes, would not move with equal "
        f"widths and the same MACs (the costliest 1x1 convolution: {worst.inputs} -> "
        f"{worst.outputs})"
    )
    change = "bring input and output widths closer: a smaller expansion on a wider trunk"
    yield excess / flow.bytes, Advice("unequal widths (G1)", places(by_layer(costs)), cost, change)


def grouped(flow: Flow, found: Sequence[Product]) -> Iterator[Finding]:
    """G2: groups save MACs, not bytes, so the arithmetic units wait for memory."""
    groups = [p for p in found if p.groups > 1]
    yield from _memory_bound(
        flow,
        found,
        [p for p in groups if p.depthwise],
        "depthwise",
        "expand less before them; where channels are few, try a dense convolution instead",
    )
    yield from _memory_bound(
        flow,
        found,
        [p for p in groups if not p.depthwise],
        "grouped",
        "use fewer groups, and fewer channels to keep the MACs",
    )


def _memory_bound(
    flow: Flow, found: Sequence[Product], chosen: Sequence[Product], kind: str, change: str
) -> Iterator[Finding]:
    macs, size = sum(p.step.macs for p in chosen), sum(p.step.call.bytes for p in chosen)
    share = size / flow.bytes
    if share < _GROUPED_SHARE or share < 2 * macs / flow.macs:
        return
    cost = (
        f"{kind} convolutions make {macs / flow.macs:.1%} of the MACs and {share:.1%} of the "
        f"bytes: {macs / size:.2g} MACs per byte"
    )
    if dense := [p for p in found if p.kernel and p.groups == 1]:
        density = sum(p.step.macs for p in dense) / sum(p.step.call.bytes for p in dense)
        cost += f" against {density:.2g} in the dense ones"
    where = places(by_layer((p, p.step.call.bytes) for p in chosen))
    yield share, Advice(f"{kind} convolutions (G2)", where, cost, change)


def small_operations(flow: Flow) -> Iterator[Finding]:
    """G3: each operation pays for its launch, and a small one leaves the device half idle."""
    counted = [step for step in flow.steps if step.macs and not step.in_attention]
    small: list[Step] = []
    total = 0
    for step in sorted(counted, key=lambda step: step.macs):
        if total + step.macs > _SMALL_SHARE * flow.macs:
            break
        total += step.macs
        small.append(step)
    if len(counted) < _MANY_CALLS or 2 * len(small) < len(counted):
        return
    cost = (
        f"{len(small)} of {len(counted)} convolutions and matrix products "
        f"make {total / flow.macs:.1%} of the MACs together"
    )
    change = (
        "use fewer and larger ones; CUDA graphs (reduce-overhead in torch.compile) hide launches"
    )
    yield _bytes_share(small, flow), Advice("small operations (G3)", _where(small), cost, change)


def parallel_branches(flow: Flow) -> Iterator[Finding]:
    """G3: branches split the work into pieces that are too small for a parallel device.

    Operations that are equally far from the input, or from the output, run side by side;
    whichever says fewer is right: all of a decoder's layers read the encoder's output.
    """
    counted = [step for step in flow.steps if step.macs]
    best: list[Step] | None = None
    most = 0
    for from_end in (False, True):
        found = zip(flow.steps, depths(flow.steps, from_end=from_end), strict=True)
        levels = [(step, depth) for step, depth in found if step.macs]
        width = Counter(depth for _, depth in levels)
        beside = [step for step, depth in levels if width[depth] >= _MANY_BRANCHES]
        if best is None or len(beside) < len(best):
            best, most = beside, max(width.values())
    if not best or 2 * len(best) < len(counted):
        return
    cost = (
        f"{len(best)} of {len(counted)} convolutions and matrix products have at least "
        f"{_MANY_BRANCHES - 1} others beside them, up to {most} at a time"
    )
    change = "use fewer, wider branches; merge operations of one kind that read the same input"
    yield _bytes_share(best, flow), Advice("parallel branches (G3)", _where(best), cost, change)


def odd_widths(flow: Flow, found: Sequence[Product]) -> Iterator[Finding]:
    """Tensor cores want channels in multiples of 8 at 16 bits a number.

    NVIDIA, "Matrix Multiplication Background User's Guide", section 3, and "Optimizing
    Convolutional Layers", section 3.
    """
    odd = [(p, widths) for p, widths in _free_widths(flow, found) if any(w % 8 for w in widths)]
    share = sum(p.step.macs for p, _ in odd) / flow.macs
    if share < _ODD_SHARE:
        return
    by_width = Counter[int]()
    more = 0.0
    for p, widths in odd:
        by_width.update({w: p.step.macs for w in widths if w % 8})
        more += p.step.macs * (math.prod(_round_up(w) / w for w in widths) - 1)
    rounded = ", ".join(f"{w:,} -> {_round_up(w):,}" for w, _ in by_width.most_common(3))
    cost = (
        f"{share:.1%} of the MACs have widths that are no multiple of 8, which keeps 16-bit "
        f"tensor cores from full speed"
    )
    change = f"widen {rounded} ({100 * more / flow.macs:.2g}% more MACs){_shared(flow, odd[0][0])}"
    where = places(by_layer((p, p.step.macs) for p, _ in odd))
    yield share, Advice("odd widths", where, cost, change)


def _free_widths(flow: Flow, found: Sequence[Product]) -> Iterator[tuple[Product, tuple[int, ...]]]:
    """Widths that the data do not dictate, as they do 3 colours or 10 classes."""
    from_input, to_end = depths(flow.steps), depths(flow.steps, from_end=True)
    for p in found:
        if p.groups == 1:
            of_data = from_input[p.index] == 1
            of_task = to_end[p.index] == 1 and p.outputs < _VOCABULARY
            yield p, (p.inputs,) * (not of_data) + (p.outputs,) * (not of_task)


def _shared(flow: Flow, p: Product) -> str:
    """Say so if the weight is another layer's: an embedding's, as a rule."""
    name = flow.parameters.get(p.weight.root, "")
    return f", and {name} with it" if name and not name.startswith(p.step.call.path) else ""


def _where(steps: Sequence[Step]) -> tuple[str, ...]:
    sizes = Counter[str]()
    for step in steps:
        sizes[step.call.path] += step.call.bytes
    return places(sizes)


def _bytes_share(steps: Sequence[Step], flow: Flow) -> float:
    return sum(step.call.bytes for step in steps) / flow.bytes


def _round_up(width: int) -> int:
    """To a multiple of 64 where that adds little, else of 8."""
    step = 64 if width >= 4096 else 8
    return -(-width // step) * step
