"""The maps of single operations: a convolution, a matrix product, a batch norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ptools.fusion.affine import Affine, Kernel, Window
from ptools.fusion.trace import Op, Trace, Value

Vector = Callable[[], torch.Tensor]  # float64, one number a channel


def norm_statistics(op: Op) -> tuple[Vector, Vector] | None:
    """The scale and the shift of a batch norm; None if they depend on the data."""
    arguments = op.arguments
    mean, variance = arguments["running_mean"], arguments["running_var"]
    weight, bias = arguments["weight"], arguments["bias"]
    if mean is None or variance is None or arguments.get("training"):
        return None
    if any(each is not None and each.data is None for each in (mean, variance, weight, bias)):
        return None
    eps: float = arguments["eps"] if "eps" in arguments else arguments["epsilon"]

    def scale() -> torch.Tensor:
        rate = torch.rsqrt(double(variance) + eps)
        return rate if weight is None else rate * double(weight)

    def shift() -> torch.Tensor:
        moved = -double(mean) * scale()
        return moved if bias is None else moved + double(bias)

    return scale, shift


def change_by(operation: str, constant: Value, channels: int) -> tuple[Vector, Vector]:
    """The scale and the shift that an operation with a constant is."""

    def number() -> torch.Tensor:
        return double(constant).reshape(-1).expand(channels)

    def one() -> torch.Tensor:
        return torch.ones(channels, dtype=torch.float64)

    def zero() -> torch.Tensor:
        return torch.zeros(channels, dtype=torch.float64)

    changes: dict[str, tuple[Vector, Vector]] = {
        "aten::mul": (number, zero),
        "aten::div": (lambda: 1 / number(), zero),
        "aten::add": (one, number),
        "aten::sub": (one, lambda: -number()),
    }
    return changes[operation]


def convolution(op: Op) -> Affine | None:
    """A convolution whose weight is a parameter as it stands."""
    arguments = op.arguments
    weight, bias = arguments["weight"], arguments["bias"]
    if not _are_parameters(weight, bias):
        return None
    transposed = bool(arguments.get("transposed", "transpose" in op.name))
    rank, groups = len(weight.shape) - 2, arguments["groups"]
    size, dilation = weight.shape[2:], _each(arguments["dilation"], rank)
    padding = _padding(arguments["padding"], size, dilation)
    if padding is None or len(arguments["input"].shape) != rank + 2:
        return None
    window = Window(size, _each(arguments["stride"], rank), padding, dilation, groups, transposed)
    ins, outs = weight.shape[:2] if transposed else (weight.shape[1] * groups, weight.shape[0])
    channels = (ins, outs * groups) if transposed else (ins, outs)
    return _base(op, arguments["input"], weight, bias, window, channels, axis=1)


def _each(numbers: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One number a dimension, where one alone is for all."""
    numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    return numbers * rank if len(numbers) == 1 else numbers


def _padding(
    padding: int | Sequence[int] | str, size: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...] | None:
    """On both sides; None where they differ."""
    if not isinstance(padding, str):
        return _each(padding, len(size))
    spans = [step * (taps - 1) for taps, step in zip(size, dilation, strict=True)]
    if padding == "valid":
        return (0,) * len(size)
    return None if any(span % 2 for span in spans) else tuple(span // 2 for span in spans)


def matrix(op: Op, trace: Trace) -> Affine | None:
    """`x W^T + b`: a Linear, as one operation or taken apart."""
    arguments = op.arguments
    if op.name == "aten::linear":
        source, weight, bias = (arguments[name] for name in ("input", "weight", "bias"))
    else:
        apart = op.name == "aten::addmm"
        source, turned = (arguments["mat1"] if apart else arguments["self"]), arguments["mat2"]
        bias = arguments["self"] if apart else None
        if apart and (arguments["alpha"], arguments["beta"]) != (1, 1):
            return None
        turn = trace.producer.get(turned)
        if turn is None or turn.name not in ("aten::t", "aten::transpose", "aten::permute"):
            return None
        weight = turn.inputs[0]
    if not _are_parameters(weight, bias):
        return None
    channels = (weight.shape[1], weight.shape[0])
    return _base(op, source, weight, bias, Window(), channels, axis=len(source.shape) - 1)


def _base(
    op: Op,
    source: Value,
    weight: Value,
    bias: Value | None,
    window: Window,
    channels: tuple[int, int],
    axis: int,
) -> Affine:
    def kernel() -> Kernel:
        zeros = torch.zeros(channels[1], dtype=torch.float64)
        return double(weight), zeros if bias is None else double(bias)

    count = math.prod(weight.shape)
    return Affine(source, op.output, window, channels, kernel, axis, op, (), (op,), count, axis)


def _are_parameters(weight: Value, bias: Value | None) -> bool:
    """Whether they are, as they stand; one number a channel in the bias."""
    if bias is not None and (bias.weight is None or len(bias.shape) != 1):
        return False
    return weight.weight is not None


def double(value: Value) -> torch.Tensor:
    """What a constant holds, in float64 on the CPU."""
    assert value.data is not None
    return value.data.detach().cpu().double()
