"""The convolutions and matrix products with a weight among the steps of a forward."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ptools.summary.advice.flow import Flow, Step, Value


@dataclass(frozen=True)
class Product:
    """`positions` are the rows of the product: pixels or tokens, times the batch.

    `kernel` is empty for a matrix product.
    """

    step: Step
    index: int
    x: Value
    weight: Value
    inputs: int
    outputs: int
    positions: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    transposed: bool = False

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.inputs

    @property
    def pointwise(self) -> bool:
        """A dense 1x1 convolution that visits every pixel."""
        plain = self.groups == 1 and not self.transposed
        return plain and set(self.kernel) == set(self.stride) == {1}


def products(flow: Flow) -> Iterator[Product]:
    """In the order of the forward; products of two activations, as in attention, are left out."""
    for index, step in enumerate(flow.steps):
        if step.call.op == "aten::convolution":
            yield _convolution(step, index)
        elif step.call.op in ("aten::mm", "aten::addmm"):
            x, weight = step.args[-2:]
            if weight.root in flow.parameters:
                inputs, outputs = weight.shape
                rows = x.shape[0]
                yield Product(step, index, x, weight, inputs, outputs, rows)


def by_layer(costs: Iterable[tuple[Product, float]]) -> dict[str, float]:
    """The sum for each layer path."""
    sums: dict[str, float] = {}
    for product, cost in costs:
        path = product.step.call.path
        sums[path] = sums.get(path, 0.0) + cost
    return sums


def _convolution(step: Step, index: int) -> Product:
    x, weight, _, stride, _, _, transposed, _, groups = step.args
    first, second = weight.shape[:2]
    inputs, outputs = (first, second * groups) if transposed else (second * groups, first)
    (out,) = step.writes
    return Product(
        step,
        index,
        x,
        weight,
        inputs,
        outputs,
        math.prod(out.shape) // outputs,
        groups,
        tuple(weight.shape[2:]),
        tuple(stride),
        transposed,
    )
