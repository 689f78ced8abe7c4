"""Floating-point operations of one aten call, and which calls have none worth counting.

Convention, torch's own: one multiply-accumulate (MAC) is two FLOPs; biases, element-wise
arithmetic, normalisation, pooling, softmax and resampling are not counted. `flops_of` answers
None for a call that is neither counted nor known to be free, so that a caller can say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from ptools.summary.free import is_free

Formula = Callable[..., int]
aten = torch.ops.aten


def _matmul(a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> int:
    return 2 * a.numel() * int(b.shape[-1])


def _addmm(_bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> int:
    return _matmul(a, b)


def _matvec(matrix: torch.Tensor, *_: Any, **__: Any) -> int:
    return 2 * matrix.numel()


def _addmv(_bias: torch.Tensor, matrix: torch.Tensor, *_: Any, **__: Any) -> int:
    return 2 * matrix.numel()


def _outer(*_: Any, out_val: torch.Tensor, **__: Any) -> int:
    return 2 * out_val.numel()


def _grouped_mm(a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> int:
    """Rows routed to experts (2-D by 3-D), groups along K (2-D by 2-D), or plain batches."""
    if a.dim() == 3 and b.dim() == 2:  # b's columns are split among the groups
        return 2 * int(a.shape[1]) * int(a.shape[2]) * int(b.shape[1])
    return 2 * a.numel() * int(b.shape[-1])


def _weight_rows(
    a: torch.Tensor, packed: torch.Tensor, *_: Any, out_val: torch.Tensor, **__: Any
) -> int:
    """Packed weights hide their layout; rows and columns are in the activation and the output."""
    return 2 * a.numel() * int(out_val.shape[-1])


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any) -> int:
    """Scores and their product with the values; keys and values may have fewer heads."""
    scores = math.prod(q.shape[:-1]) * int(k.shape[-2])
    return 2 * scores * int(q.shape[-1] + v.shape[-1])


def _sdpa_backward(
    _grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any
) -> int:
    """Scores again, their gradient, and the gradients of q, k and v."""
    scores = math.prod(q.shape[:-1]) * int(k.shape[-2])
    return 2 * scores * int(3 * q.shape[-1] + 2 * v.shape[-1])


def _conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    *_: Any,
    out_val: torch.Tensor,
    **__: Any,
) -> int:
    """Every weight meets every position: of the output, or of the input if transposed."""
    positions = (x if transposed else out_val).shape[2:]
    return 2 * int(x.shape[0]) * math.prod(positions) * weight.numel()


def _conv_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: list[bool],
    **_: Any,
) -> int:
    """As many multiplications as the forward, for each of the two gradients that is wanted.

    torch's own formula multiplies a grouped convolution's weight gradient by its groups.
    """
    forward = _conv(x, weight, None, None, None, None, transposed, out_val=grad)
    return forward * (int(wanted[0]) + int(wanted[1]))


def _trilinear(i1: torch.Tensor, i2: torch.Tensor, *_: Any, **__: Any) -> int:
    """`nn.Bilinear`: i1 is (n, 1, in1, 1), i2 the weight (1, out, in1, in2)."""
    return 2 * int(i1.shape[0]) * i2.numel()


def _cdist(a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> int:
    return 2 * a.numel() * int(b.shape[-2])


def _cdist_backward(_g: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> int:
    return 2 * _cdist(a, b)


def _quantised_conv(x: torch.Tensor, packed: Any, *_: Any, out_val: torch.Tensor, **__: Any) -> int:
    weight = packed.unpack()[0]
    return 2 * out_val.numel() * int(math.prod(weight.shape[1:]))


_MORE: dict[str, Formula] = {
    "aten::convolution": _conv,
    "aten::_convolution": _conv,
    "aten::convolution_backward": _conv_backward,
    "aten::mm": _matmul,
    "aten::bmm": _matmul,
    "aten::addmm": _addmm,
    "aten::baddbmm": _addmm,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _sdpa,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _sdpa_backward,
    "aten::_scaled_dot_product_fused_attention_overrideable": _sdpa,
    "aten::_scaled_dot_product_fused_attention_overrideable_backward": _sdpa_backward,
    "aten::_scaled_dot_product_attention_math_for_mps": _sdpa,
    "aten::_addmm_activation": _addmm,
    "aten::addbmm": _addmm,
    "aten::mv": _matvec,
    "aten::addmv": _addmv,
    "aten::dot": _matvec,
    "aten::vdot": _matvec,
    "aten::addr": _outer,
    "aten::_trilinear": _trilinear,
    "aten::_euclidean_dist": _cdist,
    "aten::_cdist_forward": _cdist,
    "aten::_cdist_backward": _cdist_backward,
    "aten::_grouped_mm": _grouped_mm,
    "aten::_scaled_grouped_mm": _grouped_mm,
    "aten::_scaled_grouped_mm_v2": _grouped_mm,
    "aten::_scaled_mm": _matmul,
    "aten::_scaled_mm_v2": _matmul,
    "aten::_int_mm": _matmul,
    "aten::_sparse_mm": _matmul,
    "aten::_weight_int8pack_mm": _weight_rows,
    "aten::_weight_int4pack_mm": _weight_rows,
    "aten::_weight_int4pack_mm_for_cpu": _weight_rows,
    "aten::_dyn_quant_matmul_4bit": _weight_rows,
    "aten::_mixed_dtypes_linear": _weight_rows,
    "quantized::linear": _weight_rows,
    "quantized::linear_relu": _weight_rows,
    "quantized::linear_dynamic": _weight_rows,
    "quantized::linear_relu_dynamic": _weight_rows,
    "quantized::linear_dynamic_fp16": _weight_rows,
    **{
        f"quantized::conv{dims}d{suffix}": _quantised_conv
        for dims in (1, 2, 3)
        for suffix in ("", "_relu", "_dynamic")
    },
}


def _named(qualified: str) -> Any | None:
    namespace, name = qualified.split("::")
    return getattr(getattr(torch.ops, namespace), name, None)


def _formulas() -> dict[Any, Formula]:
    """torch's registry, with what it lacks or gets wrong and faster formulas for the commonest."""
    known: dict[Any, Formula] = dict(flop_registry)
    known.update({op: f for name, f in _MORE.items() if (op := _named(name))})
    for name in ("addmm", "addmv", "addbmm", "baddbmm", "addr"):
        known[getattr(aten, f"{name}_")] = known[getattr(aten, name)]
    return known


_FORMULAS = _formulas()


def has_formula(func: Any) -> bool:
    """Whether the operation (an OpOverload) is counted."""
    return _packet(func) in _FORMULAS


def _packet(func: Any) -> Any:
    """All overloads have one formula; a higher-order operator has no overloads."""
    return getattr(func, "_overloadpacket", func)


def flops_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int | None:
    """FLOPs of one call of an OpOverload, 0 for a free one, None for one that has no formula."""
    formula = _FORMULAS.get(_packet(func))
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=out))
    return 0 if is_free(func) else None
