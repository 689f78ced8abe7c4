"""A model converted for inference, and compared with what it was on given data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from ptools.errors import PtoolsError, UsageError
from ptools.replica import cloned, replica, unwrapped
from ptools.train.conversion import Conversion, compare

_CHANNELS_LAST: Any = torch.channels_last


def to_half(
    model: nn.Module, data: Any, *, tolerance: float = 0.01, check: bool = True
) -> tuple[nn.Module, Conversion]:
    """A copy of a model in float16, which takes its inputs in float16.

    BatchNorm keeps its parameters and statistics in float32: a variance above 65504 would be
    infinite, and torch's kernels take such a mixture. LayerNorm and GroupNorm become float16:
    they keep no statistics, compute in float32 within, and on a GPU take one dtype only.

    Args:
        model: stays as it is; the copy is in eval mode.
        data: a batch, or a list or loader of them. A batch is a tensor, keyword arguments in a
            mapping, or a tuple of inputs and targets, of which the targets are ignored; a tuple
            in place of the inputs holds several.
        tolerance: the largest error of an output, as a share of the largest output of a batch.
        check: whether to fail if that is exceeded; the report tells it otherwise.

    Raises:
        PtoolsError: the error is above the tolerance, or the model does not run in float16.
        UsageError: there is no data.

    Example:
        >>> half, report = to_half(net, loader)
        >>> print(report)
    """

    def change(copy: nn.Module) -> nn.Module:
        norms = [module for module in copy.modules() if isinstance(module, _BatchNorm)]
        kept = {id(one) for norm in norms for one in _tensors(norm)}
        return _rewritten(copy, lambda one: one if id(one) in kept else _halved(one.data))

    return _converted("float16", model, data, change, _halved, tolerance, check)


def to_channels_last(
    model: nn.Module, data: Any, *, tolerance: float = 1e-4, check: bool = True
) -> tuple[nn.Module, Conversion]:
    """A copy of a model whose convolutions keep the channels of a pixel side by side.

    It wants its images likewise: `images.contiguous(memory_format=torch.channels_last)`. Sums are
    taken in another order, so that outputs may differ in their last digits. See `to_half` for the
    arguments and errors.
    """

    def change(copy: nn.Module) -> nn.Module:
        return _rewritten(copy, lambda one: _pixelwise(one.data))

    return _converted("channels_last", model, data, change, _pixelwise, tolerance, check)


def quantise(
    model: nn.Module, data: Any, *, tolerance: float = 0.1, check: bool = True
) -> tuple[nn.Module, Conversion]:
    """A copy of a model whose Linear layers multiply in int8.

    Weights are quantised by row, and inputs as they come, so that nothing is calibrated. Others,
    LSTM among them, stay as they are: torchao has none, and torch.ao.quantization, which had, is
    deprecated. See `to_half` for the arguments and other errors.

    Raises:
        PtoolsError: torchao is not installed.
        UsageError: the model has no Linear.
    """
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise UsageError(
            "the model has no Linear to quantise", hint="ptools fuse --int8 does convolutions too"
        )
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        raise PtoolsError(
            "int8 needs torchao, which is not installed", hint="pip install 'ptools[int8]'"
        ) from None

    def change(copy: nn.Module) -> nn.Module:
        quantize_(copy, Int8DynamicActivationInt8WeightConfig())
        return copy

    return _converted("int8", model, data, change, lambda inputs: inputs, tolerance, check)


def _converted(
    kind: str,
    model: nn.Module,
    data: Any,
    change: Callable[[nn.Module], nn.Module],
    feed: Callable[[Any], Any],
    tolerance: float,
    check: bool,
) -> tuple[nn.Module, Conversion]:
    # Its forward may keep state, and its flags must stay: what is run is a copy in both cases.
    before, copy = (replica(unwrapped(model), cloned).eval() for _ in range(2))
    after = change(copy)
    for module in (*before.modules(), *after.modules()):
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # cuDNN is slow where a copy lies in pieces
    report = compare(kind, before, after, data, feed, tolerance)
    if check and not report.within:
        raise PtoolsError(
            f"{kind} is not accurate enough: {report}",
            hint=f"tolerance={report.error:.1g} accepts it, check=False whatever it is",
        )
    return after, report


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _rewritten(copy: nn.Module, new: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    for tensor in _tensors(copy):
        tensor.data = new(tensor)
    return copy


def _halved(inputs: Any) -> Any:
    def half(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.half() if tensor.is_floating_point() else tensor

    return tree_map_only(torch.Tensor, half, inputs)


def _pixelwise(inputs: Any) -> Any:
    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous(memory_format=_CHANNELS_LAST) if tensor.dim() == 4 else tensor

    return tree_map_only(torch.Tensor, moved, inputs)
