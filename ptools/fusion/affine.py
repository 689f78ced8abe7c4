"""The algebra: what is linear in one source is one convolution (or one matrix) and a bias.

    batch norm, scale     y = s x + t, a channel at a time: scales the kernel's rows
    parallel branches     kernels that read the same source are aligned and added
    identity              a depthwise kernel of one tap

As in RepVGG (Ding et al. 2021, section 3.3) and DBB (Ding et al. 2021, transforms I, II and VI).
Weights are made on demand, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ptools.fusion.trace import Op, Value

Kernel = tuple[torch.Tensor, torch.Tensor]  # weight, bias; float64


@dataclass(frozen=True)
class Window:
    """How a convolution moves: one number a spatial dimension. A Linear has none of them."""

    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    @property
    def is_pointwise(self) -> bool:
        """Whether each place of the output comes from the same place of the input alone."""
        moves = (*self.size, *self.stride)
        return all(n == 1 for n in moves) and not any(self.padding) and not self.transposed


@dataclass(frozen=True, eq=False)
class Affine:
    """`value` = kernel * `source` + bias, by way of `ops`.

    `axis` and `source_axis` are the dimensions of both that hold the channels. `parts` are the
    smaller maps that it was made of, `op` the operation that made it; `convolutions` those within
    it.
    """

    source: Value
    value: Value
    window: Window
    channels: tuple[int, int]  # in, out
    kernel: Callable[[], Kernel]
    axis: int
    op: Op | None = None
    parts: tuple[Affine, ...] = ()
    convolutions: tuple[Op, ...] = ()
    parameters: int = 0
    source_axis: int = 1

    @property
    def ops(self) -> tuple[Op, ...]:
        """All operations between the source and the value."""
        inner = tuple(op for part in self.parts for op in part.ops)
        return (*inner, self.op) if self.op else inner

    @property
    def output_padding(self) -> list[int]:
        """What a transposed convolution adds to its output's size, a number a dimension."""
        more = self.convolutions[0].arguments.get("output_padding", 0)
        return [more] * len(self.window.size) if isinstance(more, int) else list(more)

    @property
    def weight_count(self) -> int:
        """Elements of the kernel."""
        return math.prod(self.window.size) * math.prod(self.channels) // self.window.groups


def identity(value: Value) -> Affine:
    """The value as a map of itself: channels are dimension 1."""
    channels, rank = value.shape[1], len(value.shape) - 2
    one, zero = (1,) * rank, (0,) * rank

    def kernel() -> Kernel:
        weight = torch.ones(channels, 1, *one, dtype=torch.float64)
        return weight, torch.zeros(channels, dtype=torch.float64)

    window = Window(one, one, zero, one, groups=channels)
    return Affine(value, value, window, (channels, channels), kernel, axis=1)


def scaled(
    inner: Affine, op: Op, scale: Callable[[], torch.Tensor], shift: Callable[[], torch.Tensor]
) -> Affine:
    """A scale and a shift for each channel after `inner`; both float64 of shape (channels,)."""

    def kernel() -> Kernel:
        weight, bias = inner.kernel()
        factor = scale()
        window = inner.window
        if window.transposed:  # (in, out / groups, ...): the channels of a group lie in its rows
            grouped = weight.view(window.groups, -1, *weight.shape[1:])
            by_group = factor.view(window.groups, 1, weight.shape[1], *(1,) * len(window.size))
            weight = (grouped * by_group).view_as(weight)
        else:
            weight = weight * factor.view(-1, *(1,) * (weight.dim() - 1))
        return weight, bias * factor + shift()

    return replace(inner, value=op.output, kernel=kernel, op=op, parts=(inner,))


def passed(inner: Affine, op: Op, axis: int) -> Affine:
    """The same numbers in another shape, with the channels in dimension `axis`."""
    return replace(inner, value=op.output, axis=axis, op=op, parts=(inner,))


def composed(first: Affine, second: Affine) -> Affine | None:
    """A scale of each channel, then a convolution: one, unless it pads with unscaled zeros."""
    depthwise = first.window.groups == first.channels[0] == first.channels[1]
    if not (depthwise and first.window.is_pointwise) or any(second.window.padding):
        return None
    if second.window.transposed:
        return None

    def kernel() -> Kernel:
        scale, shift = first.kernel()
        weight, bias = second.kernel()
        groups = second.window.groups
        outs, ins = weight.shape[:2]
        rows = weight.view(groups, outs // groups, ins, -1)
        columns = scale.view(groups, 1, ins, 1), shift.view(groups, 1, ins, 1)
        added = (rows * columns[1]).sum((2, 3)).view(outs)
        return (rows * columns[0]).view_as(weight), bias + added

    return replace(
        second,
        source=first.source,
        kernel=kernel,
        parts=(first, second),
        op=None,
        parameters=first.parameters + second.parameters,
        source_axis=first.source_axis,
    )


def summed(a: Affine, b: Affine, op: Op) -> Affine | None:
    """Two maps of the same source added; None where one convolution can't do what both do."""
    window = _common_window(a.window, b.window)
    same = a.source is b.source and a.channels == b.channels and a.value.shape == b.value.shape
    if window is None or not same:
        return None

    def kernel() -> Kernel:
        weight = torch.zeros(a.channels[1], a.channels[0] // window.groups, *window.size)
        weight = weight.double()
        total = torch.zeros(a.channels[1], dtype=torch.float64)
        for part in (a, b):
            inner, bias = part.kernel()
            _placed(weight, part.window, window).add_(_regrouped(inner, part, window.groups))
            total += bias
        return weight, total

    result = Affine(
        a.source,
        op.output,
        window,
        a.channels,
        kernel,
        a.axis,
        op,
        (a, b),
        a.convolutions + b.convolutions,
        a.parameters + b.parameters,
    )
    return result if result.weight_count <= result.parameters else None


def _common_window(one: Window, two: Window) -> Window | None:
    """The smallest window in which both kernels find their place, taps aligned by padding."""
    if not one.size or one.transposed or two.transposed or one.stride != two.stride:
        return None
    spread = [window for window in (one, two) if any(n != 1 for n in window.size)]
    if len(spread) == 2 and one.dilation != two.dilation:
        return None
    dilation = (spread or [one])[0].dilation
    size, padding = [], []
    for i, step in enumerate(dilation):
        if one.padding[i] % step or two.padding[i] % step:
            return None
        before = [window.padding[i] // step for window in (one, two)]
        after = [w.size[i] - taps for w, taps in zip((one, two), before, strict=True)]
        if before[0] - after[0] != before[1] - after[1]:
            return None  # outputs of one size by rounding alone
        size.append(max(before) + max(after))
        padding.append(max(before) * step)
    groups = math.gcd(one.groups, two.groups)
    return Window(tuple(size), one.stride, tuple(padding), dilation, groups)


def _placed(weight: torch.Tensor, inner: Window, outer: Window) -> torch.Tensor:
    """The part of a kernel over which a smaller one comes to lie."""
    places = [slice(None), slice(None)]
    for i, size in enumerate(inner.size):
        start = (outer.padding[i] - inner.padding[i]) // outer.dilation[i]
        places.append(slice(start, start + size))
    return weight[tuple(places)]


def _regrouped(weight: torch.Tensor, part: Affine, groups: int) -> torch.Tensor:
    """The same kernel with fewer groups: zeros where they were apart."""
    if part.window.groups == groups:
        return weight
    ins, outs = part.channels
    each = weight.shape[1]
    result = weight.new_zeros(outs, ins // groups, *weight.shape[2:])
    for row in range(outs):
        first = row // (outs // part.window.groups) * each  # of the channels that the row reads
        start = first - row // (outs // groups) * (ins // groups)
        result[row, start : start + each] = weight[row]
    return result
