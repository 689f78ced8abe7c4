"""What the comparison has to know of each operation, looked up once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ptools.dispatch import name_of
from ptools.repro.ranks.collectives import is_collective, merely_written

# Nothing is computed: views, and memory that nothing was written to.
_FRESH = "empty empty_like empty_strided empty_permuted new_empty new_empty_strided".split()
_SILENT = {
    *_FRESH,
    *"resize_ resize_as_ set_ is_same_size _local_scalar_dense record_stream".split(),
}
# The tensor that is written is not read before.
_OVERWRITES = {
    *"copy_ fill_ zero_ normal_ uniform_ random_ bernoulli_ exponential_ log_normal_".split(),
    *"cauchy_ geometric_ lift_fresh_ eye arange".split(),
}
# Results in which an operation leaves what was in the memory before, by their number.
_SCRATCH = {
    "mkldnn_rnn_layer": {3},
    "_cudnn_rnn": {3},
    "miopen_rnn": {3},
    "cudnn_batch_norm": {3},
    "_batch_norm_with_update": {3},
    "_scaled_dot_product_flash_attention": {2, 3, 4, 5, 6, 7, 8},
    "_scaled_dot_product_efficient_attention": {2, 3},
    "_scaled_dot_product_cudnn_attention": {2, 3, 4, 5, 6, 7, 8},
    "_flash_attention_forward": {2, 3, 4},
    "_efficient_attention_forward": {2, 3, 4, 5},
}
# Arguments by which a backward is given those.
_SCRATCH_GIVEN = frozenset(
    "workspace reserve reserveSpace reserve_space philox_seed philox_offset rng_state".split()
)

PLAIN = (int, float, bool, complex, str, bytes, torch.dtype, type(None))


@dataclass(frozen=True, slots=True)
class Operation:
    """An overload.

    Args:
        names: of its arguments.
        read: of those, all that mean something and are not merely written.
        written: those that are.
        random: it draws from a generator.
        silent: it computes nothing.
        fresh: it gives memory that nothing was written to.
        scratch: the numbers of results that mean nothing.
        collective: it exchanges tensors with other processes.
    """

    name: str
    names: tuple[str, ...]
    read: frozenset[str]
    written: tuple[str, ...]
    random: bool
    silent: bool
    fresh: bool
    scratch: frozenset[int]
    collective: bool


def operation_of(func: Any, _known: dict[Any, Operation] = {}) -> Operation:  # noqa: B006
    """What is known of an overload."""
    operation = _known.get(func)
    if operation is None:
        operation = _known[func] = _described(func)
    return operation


def arguments_of(
    operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """What was given, by the names of the schema; entries of lists one by one."""
    for name, value in (*zip(operation.names, args, strict=False), *kwargs.items()):
        if isinstance(value, list | tuple) and any(isinstance(one, torch.Tensor) for one in value):
            yield from ((f"{name}[{number}]", one) for number, one in enumerate(value))
        else:
            yield name, value


def _described(func: Any) -> Operation:
    name = name_of(func)
    base = name.partition("::")[2]
    schema = getattr(func, "_schema", None)
    arguments = schema.arguments if schema else ()
    names = tuple(argument.name for argument in arguments)
    written = tuple(one.name for one in arguments if one.alias_info and one.alias_info.is_write)
    merely = {one.name for one in arguments if one.is_out}
    if base in _OVERWRITES:
        merely |= set(written)
    if is_collective(name):
        merely |= merely_written(name, names)
    views = [one.alias_info is not None for one in schema.returns] if schema else []
    return Operation(
        name=name,
        names=names,
        read=frozenset(names) - merely - _SCRATCH_GIVEN,
        written=written,
        random=torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()),
        silent=base in _SILENT or (bool(views) and all(views) and not written),
        fresh=base in _FRESH,
        scratch=frozenset(_SCRATCH.get(base, ())),
        collective=is_collective(name),
    )
