"""What to feed a model: shapes and dtypes of the arguments of its forward.

An `Inputs` holds shapes and dtypes, not data, so that a room can make `meta`, fake or real
tensors of it. Its `source` says how far it can be trusted: `given`, `declared` or `guessed`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from ptools.errors import UsageError

Source = Literal["given", "declared", "guessed"]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor to be made: shape, dtype, and its data where the user handed in a tensor.

    No dtype is the one that the model takes (`guess.in_its_dtype`).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    value: torch.Tensor | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        return f"{shape} {str(self.dtype).removeprefix('torch.')}" if self.dtype else shape


@dataclass(frozen=True)
class Inputs:
    """Arguments of a forward call, with a `TensorSpec` in the place of each tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    source: Source
    origin: str

    def make(self, tensor: Callable[[TensorSpec], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with tensor(spec) in the place of each spec."""
        args, kwargs = tree_map_only(TensorSpec, tensor, (self.args, self.kwargs))
        return args, kwargs

    def specs(self) -> list[TensorSpec]:
        """The tensors, in the order of the arguments."""
        leaves = tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, TensorSpec)]

    def with_batch(self, batch: int) -> Inputs:
        """The first dimension of every tensor set to `batch`."""

        def resized(spec: TensorSpec) -> TensorSpec:
            return TensorSpec((batch, *spec.shape[1:]), spec.dtype) if spec.shape else spec

        args, kwargs = self.make(resized)
        return replace(self, args=args, kwargs=kwargs)

    def with_dtype(self, dtype: torch.dtype) -> Inputs:
        """Every floating-point tensor in `dtype`."""

        def cast(spec: TensorSpec) -> TensorSpec:
            if spec.dtype is not None and not spec.dtype.is_floating_point:
                return spec
            value = None if spec.value is None else spec.value.to(dtype)
            return TensorSpec(spec.shape, dtype, value)

        args, kwargs = self.make(cast)
        return replace(self, args=args, kwargs=kwargs)

    def __str__(self) -> str:
        positional = [_text(arg) for arg in self.args]
        named = [f"{name}={_text(value)}" for name, value in self.kwargs.items()]
        return ", ".join(positional + named)


def from_value(value: Any, source: Source, origin: str) -> Inputs:
    """Inputs from tensors (or specs): a tuple is positional, a mapping with str keys is named.

    Several integers are the shape of one tensor. Anything else, a list of tensors too, is one
    positional argument.
    """
    if isinstance(value, Inputs):
        return value
    if isinstance(value, tuple | list) and value and all(type(item) is int for item in value):
        value = TensorSpec(tuple(value))
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        args, kwargs = (), dict(value)
    else:
        args, kwargs = (value if isinstance(value, tuple) else (value,)), {}

    def spec(tensor: torch.Tensor) -> TensorSpec:
        return TensorSpec(tuple(tensor.shape), tensor.dtype, None if tensor.is_meta else tensor)

    args, kwargs = tree_map_only(torch.Tensor, spec, (args, kwargs))
    return Inputs(args, kwargs, source, origin)


def parse(texts: Sequence[str]) -> Inputs:
    """Inputs from `--input` texts: `[NAME=]SHAPE[:DTYPE]`, as `3x224x224` or `ids=1x128:int64`.

    Raises UsageError for a text that is not of this form.
    """
    args: list[TensorSpec] = []
    kwargs: dict[str, TensorSpec] = {}
    for text in texts:
        name, _, rest = text.rpartition("=")
        shape, _, dtype = rest.partition(":")
        if not re.fullmatch(r"\d+([x,]\d+)*", shape):
            raise UsageError(
                f"--input {text}: not a shape",
                hint="write --input 3x224x224, or NAME=SHAPE:DTYPE as --input ids=1x128:int64",
            )
        sizes = tuple(map(int, re.split("[x,]", shape)))
        spec = TensorSpec(sizes, parse_dtype(dtype) if dtype else None)
        if 0 in spec.shape:
            raise UsageError(f"--input {text}: every dimension must be at least 1")
        if name in kwargs:
            raise UsageError(f"--input {name} is given twice")
        if name:
            kwargs[name] = spec
        else:
            args.append(spec)
    return Inputs(tuple(args), dict(kwargs), "given", "--input")


def parse_dtype(text: str) -> torch.dtype:
    """`float16`, `fp16`, `half` and the like to a torch dtype; UsageError for anything else."""
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp64": "float64"}
    dtype = getattr(torch, short.get(text, text), None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(
            f"{text} is not a dtype", hint="one of float32, bfloat16, float16, int64, bool"
        )
    return dtype


def _text(value: Any) -> str:
    """Nested arguments in one line, with `1x3x224x224 float32` for a tensor."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
    return str(value)
