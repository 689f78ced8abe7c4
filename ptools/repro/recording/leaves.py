"""What a batch or a model's output is made of, leaf by leaf."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ptools.repro.events import Value
from ptools.repro.recording.digests import Digester
from ptools.repro.recording.operations import PLAIN

_DEEP = 8


def values_in(tree: Any, name: str, digester: Digester) -> list[Value]:
    """A value for each leaf."""
    return [
        value_of(f"{name}{path}", leaf, digester)
        if isinstance(leaf, torch.Tensor)
        else _object(f"{name}{path}", leaf)
        for path, leaf in _leaves(tree, "", 0)
    ]


def values_of_batch(batch: Any, digester: Digester, samples: bool) -> list[Value]:
    """A value for each leaf, without numbers; `samples`: with a digest of each sample."""
    return [_field(f"batch{path}", leaf, digester, samples) for path, leaf in _leaves(batch, "", 0)]


def told(tensor: torch.Tensor) -> str:
    """`64x3 float32`."""
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def value_of(name: str, tensor: torch.Tensor, digester: Digester) -> Value:
    """A tensor as a value."""
    return Value(name, told(tensor), digester.of(tensor), (), digester.numbers([tensor]))


def number(name: str, value: Any) -> Value:
    """What is no tensor; objects count by their type, since their addresses differ."""
    flat = value if isinstance(value, list | tuple) else (value,)
    text = repr(value) if all(isinstance(one, PLAIN) for one in flat) else type(value).__name__
    numbers = (value,) if isinstance(value, float) else ()
    return Value(name, text[:100], zlib.crc32(text.encode(errors="replace")), (), numbers)


def _leaves(tree: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, torch.Tensor | str | bytes) or depth > _DEEP:
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}[{key!r}]", depth + 1)
    elif isinstance(tree, list | tuple):
        if all(isinstance(one, PLAIN) for one in tree):
            yield path, tree
            return
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{path}[{index}]", depth + 1)
    elif getattr(tree, "__dict__", None) and not callable(tree):
        for key, value in vars(tree).items():
            yield from _leaves(value, f"{path}.{key}", depth + 1)
    else:
        yield path, tree


def _field(name: str, leaf: Any, digester: Digester, samples: bool) -> Value:
    if isinstance(leaf, torch.Tensor):
        parts = digester.samples(leaf) if samples else ()
        return Value(name, told(leaf), digester.of(leaf), parts)
    is_list = samples and isinstance(leaf, list | tuple)
    parts = tuple(number("", one).digest for one in leaf) if is_list else ()
    return _object(name, leaf)._replace(parts=parts, numbers=())


def _object(name: str, leaf: Any) -> Value:
    if type(leaf).__module__ == "numpy" and hasattr(leaf, "tobytes"):
        return Value(name, f"{leaf.shape} {leaf.dtype}", zlib.crc32(leaf.tobytes()))
    return number(name, leaf)
