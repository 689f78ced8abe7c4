"""Check each region on real activations: the one convolution beside what it replaces."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ptools.fusion.affine import Affine, Kernel
from ptools.fusion.observe import observe
from ptools.fusion.prove import Proof
from ptools.fusion.steps import Fold
from ptools.fusion.trace import Op
from ptools.fusion.trials import Trial
from ptools.fusion.verify import difference

# Of the spread of a layer's output. The layer itself rounds, and more so where its mean is large.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
_SHORT = 0.25  # for 16 bits and less


def check_numbers(model: nn.Module, trial: Trial, proof: Proof) -> None:
    """Take changes out of the proof whose numbers do not hold on the trial's activations."""
    _check_overflow(proof)
    check = _Check(proof)
    observe(model, trial.args, trial.kwargs, check.see)
    for fold, _ in check.waiting.values():
        check.problems[fold] = "the forward runs other operations each time"
    for fold, problem in check.problems.items():
        proof.refuse(fold, problem)


def _check_overflow(proof: Proof) -> None:
    for fold, regions in list(proof.folds.items()):
        dtype = regions[0].value.dtype
        if not all(tensor.to(dtype).isfinite().all() for tensor in regions[0].kernel()):
            proof.refuse(fold, f"the folded weights overflow {str(dtype).removeprefix('torch.')}")


class _Check:
    """Computes a region's convolution when its source is seen, compares when its value is.

    All regions of one change get the weights of the first, as the model will. What is still in
    `waiting` at the end was not compared, as this forward was another one.
    """

    def __init__(self, proof: Proof) -> None:
        self.problems: dict[Fold, str] = {}
        self.waiting: dict[int, tuple[Fold, Affine]] = {}
        self._starts: dict[int, list[tuple[Fold, Affine]]] = defaultdict(list)
        self._looks: dict[int, tuple[Any, ...]] = {}
        self._computed: dict[int, torch.Tensor] = {}
        self._first = {fold: regions[0] for fold, regions in proof.folds.items()}
        for fold, regions in proof.folds.items():
            for region in regions:
                ops = [op for op in region.ops if region.source in op.inputs]
                self._starts[min(op.index for op in ops)].append((fold, region))
                self._looks.update((op.index, _look(op)) for op in region.ops)
                self.waiting[_last(region).index] = (fold, region)

    def see(self, op: Op, read: list[torch.Tensor], made: list[torch.Tensor]) -> None:
        if self._looks.get(op.index, look := _look(op)) != look:
            self._starts.clear()
        for fold, region in self._starts.get(op.index, ()):
            first = next(o for o in region.ops if o.index == op.index)
            source = read[first.inputs.index(region.source)]
            kernel = self._first[fold].kernel()
            self._computed[_last(region).index] = _convolved(region, source, kernel)
        if op.index in self._computed:
            fold, region = self.waiting.pop(op.index)
            self._compare(fold, region, self._computed.pop(op.index), made[0])

    def _compare(
        self, fold: Fold, region: Affine, got: torch.Tensor, expected: torch.Tensor
    ) -> None:
        got = got.movedim(1 if region.window.size else -1, -1)
        expected = expected.movedim(region.axis, -1).reshape(got.shape)
        error = difference(expected, got).relative
        if not error <= _TOLERANCE.get(expected.dtype, _SHORT):
            shown = "an overflow" if math.isinf(error) else f"an error of {error:.1g}"
            self.problems[fold] = f"the numbers do not hold: {shown} of the layer's spread"


def _look(op: Op) -> tuple[Any, ...]:
    return op.name, *(value.shape for value in op.inputs)


def _last(region: Affine) -> Op:
    return region.op or region.parts[-1].ops[-1]


def _convolved(region: Affine, source: torch.Tensor, kernel: Kernel) -> torch.Tensor:
    window = region.window
    weight, bias = (tensor.to(source) for tensor in kernel)
    if not window.size:
        return F.linear(source.movedim(region.source_axis, -1), weight, bias)
    return torch.convolution(
        source,
        weight,
        bias,
        window.stride,
        window.padding,
        window.dilation,
        window.transposed,
        region.output_padding,
        window.groups,
    )
