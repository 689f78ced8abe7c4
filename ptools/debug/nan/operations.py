"""What the tracing of NaN has to know of each operation, looked up once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from ptools.debug.mode import tensors_in
from ptools.dispatch import name_of


class Care(Enum):
    """What an operation's result may hold."""

    NOTHING = 0  # views share memory with what is known; integers are finite
    MEMORY = 1  # whatever was in the memory before
    MOVED = 2  # nothing that is not finite, unless an input does
    ANYTHING = 3


@dataclass(frozen=True, slots=True)
class Operation:
    """An overload: its name, what to look for, and which of its arguments it writes."""

    name: str
    care: Care
    names: tuple[str, ...]
    written: tuple[str, ...]
    moves: bool  # copies numbers, and does not compute with them


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that an operation was given."""

    name: str
    tensor: torch.Tensor
    written: bool


_MEMORY = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty"}
_MEMORY |= {"new_empty_strided", "resize_", "resize_as_"}
_COPIES = {"clone", "cat", "stack", "index", "index_select", "gather", "embedding", "repeat"}
_COPIES |= {"flip", "roll", "split_with_sizes_copy", "select_backward", "slice_backward"}
_CASTS = {"_to_copy", "copy_", "lift_fresh"}
_BOUNDED = {"relu", "relu_", "threshold_backward", "neg", "abs", "sign", "where", "tanh", "sigmoid"}
_BOUNDED |= {"max_pool2d_with_indices", "maximum", "minimum", "sin", "cos", "silu", "gelu"}
_BOUNDED |= {"zeros", "zeros_like", "new_zeros", "zero_", "ones", "ones_like", "new_ones"}
_BOUNDED |= {"rand", "randn", "rand_like", "randn_like", "uniform_", "bernoulli_", "arange"}
_NOTHING = {"_local_scalar_dense", "isnan", "isinf", "isfinite", "_efficientzerotensor", "set_"}


def operation_of(func: Any, _known: dict[Any, Operation] = {}) -> Operation:  # noqa: B006
    """What is known of an overload."""
    operation = _known.get(func)
    if operation is None:
        operation = _known[func] = _described(func)
    return operation


def inputs_of(operation: Operation, args: tuple[Any, ...], kwargs: Any) -> Iterator[Input]:
    """The tensors that were given, by the names of the schema."""
    named = [*zip(operation.names, args, strict=False), *(kwargs or {}).items()]
    for name, value in named:
        several = isinstance(value, list | tuple)
        for number, tensor in enumerate(tensors_in(value)):
            shown = f"{name}[{number}]" if several else name
            yield Input(shown, tensor, name in operation.written)


def _described(func: Any) -> Operation:
    name = name_of(func)
    base = name.partition("::")[2]
    schema = getattr(func, "_schema", None)
    arguments = schema.arguments if schema else ()
    return Operation(
        name=name,
        care=_care(base, schema) if name.startswith("aten::") else Care.ANYTHING,
        names=tuple(argument.name for argument in arguments),
        written=tuple(
            argument.name for argument in arguments if argument.alias_info and argument.is_write
        ),
        moves=base in _COPIES | _CASTS,
    )


def _care(base: str, schema: Any) -> Care:
    if base in _MEMORY:
        return Care.MEMORY
    if base in _COPIES | _BOUNDED:
        return Care.MOVED
    views = [one.alias_info is not None and not one.alias_info.is_write for one in schema.returns]
    return Care.NOTHING if base in _NOTHING or (views and all(views)) else Care.ANYTHING
