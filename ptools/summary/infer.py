"""Result and cost of one operation; on `meta` tensors both are remembered.

torch infers most shapes in Python, at 0.1-0.3 ms an operation; a network asks for the same few
over and over. An operation that makes new tensors is inferred once for each combination of
operand shapes, strides, dtypes and scalars; after that its result is made from what was seen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch._ops import HigherOrderOperator

from ptools.summary.flops import flops_of

aten = torch.ops.aten
_MAX_ENTRIES = 20_000
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))
_SCALARS = frozenset((int, float, bool, complex))


class Cost(NamedTuple):
    """`flops` is None where there is no formula; `bytes` are read and written."""

    flops: int | None
    bytes: int


class _Known(NamedTuple):
    """`kind` is the type of the result, None for an operation that returns its first argument."""

    kind: Any
    metas: tuple[Any, ...]
    cost: Cost


class _Uncacheable(Exception):
    pass


_known: dict[Any, _Known] = {}
_NOTHING = Cost(0, 0)
_MOVES_NOTHING = (aten._unsafe_view.default, aten.empty.memory_format, aten.empty_like.default)


def infer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Cost]:
    """func(*args, **kwargs) of an OpOverload, and what it costs."""
    if isinstance(func, HigherOrderOperator):
        out = func(*args, **kwargs)
        return out, _cost(func, args, kwargs, out)
    if func.is_view:
        return func(*args, **kwargs), _NOTHING
    key, known = _look_up(func, args, kwargs)
    if known is None:
        out = _run(func, args, kwargs)
        cost = _cost(func, args, kwargs, out)
        if key is not None:
            _remember(key, func, args, out, cost)
        return out, cost
    if known.kind is None:
        return args[0], known.cost
    made = [_empty(meta) for meta in known.metas]
    return (made[0] if known.kind is torch.Tensor else known.kind(made)), known.cost


def _look_up(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, _Known | None]:
    """The key and what is known under it; (None, None) where nothing can be remembered."""
    try:
        named = _key(tuple(kwargs.items())) if kwargs else ()
        key = (func, torch.get_default_dtype(), _key(args), named)
        return key, _known.get(key)
    except (_Uncacheable, TypeError):
        return None, None


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func is aten._grouped_mm.default and args[0].dtype is torch.float32:
        # Its shape function wants bfloat16, the CPU and CUDA kernels do not.
        half = [
            a.bfloat16() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
            for a in args
        ]
        return func(*half, **kwargs).float()
    return func(*args, **kwargs)


def _cost(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Cost:
    return Cost(flops_of(func, args, kwargs, out), _moved(func, args, kwargs, out))


def _moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Bytes read and written, if every operand is read once and every result written once."""
    written = _bytes((out,))
    if func in _MOVES_NOTHING or not written:
        return 0
    if func is aten.embedding.default:  # reads the rows that it copies, not the whole table
        return 2 * written + _bytes(args[1:])
    return _bytes(args) + _bytes(kwargs.values()) + written


def _remember(key: Any, func: Any, args: tuple[Any, ...], out: Any, cost: Cost) -> None:
    if len(_known) >= _MAX_ENTRIES:
        return
    if args and out is args[0] and _key(out) == key[2][0]:  # and was not resized
        _known[key] = _Known(None, (), cost)
    schema = func._schema
    if schema.is_mutable or any(result.alias_info for result in schema.returns):
        return
    kind = type(out)
    outs = (out,) if kind is torch.Tensor else out
    if kind in (torch.Tensor, tuple, list) and all(map(_is_plain_meta, outs)):
        metas = tuple(t if t is None else (t.shape, t.stride(), t.dtype) for t in outs)
        _known[key] = _Known(kind, metas, cost)


def _is_plain_meta(value: Any) -> bool:
    return value is None or (type(value) is torch.Tensor and value.is_meta)


def _empty(meta: tuple[Any, ...] | None) -> torch.Tensor | None:
    if meta is None:
        return None
    return torch.empty_strided(meta[0], meta[1], dtype=meta[2], device="meta")


def _key(value: Any) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        if not value.is_meta:
            raise _Uncacheable
        return value.shape, value.stride(), value.dtype
    if kind is tuple or kind is list:
        return tuple([_key(item) for item in value])
    if kind in _SCALARS:
        return kind, value  # 1 and 1.0 promote differently
    if isinstance(value, torch.Tensor):
        raise _Uncacheable
    return value


def _bytes(values: Any) -> int:
    total = 0
    for value in values:
        if isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, list | tuple):
            total += _bytes(value)
    return total
