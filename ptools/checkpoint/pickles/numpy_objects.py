"""numpy's scalars, dtypes and arrays, read from how they are pickled.

The layouts are those of numpy/_core/src/multiarray: descriptor.c (`arraydescr_reduce`), methods.c
(`array_reduce`) and scalartypes.c.src; numpy 1 and 2 differ in module names only.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from ptools.checkpoint.data.content import Literal
from ptools.checkpoint.pickles.nodes import Call, Global, List, Node, Tuple
from ptools.checkpoint.pickles.tensors import contiguous_stride, new_tensor

_INTEGERS = (1, 2, 4, 8)
_KINDS = {"i": "int", "u": "uint", "f": "float", "c": "complex"}
_SIZES = {"i": _INTEGERS, "u": _INTEGERS, "f": (2, 4, 8), "c": (8, 16)}
_NAMES = {"b1": "bool"} | {
    f"{kind}{size}": f"{name}{8 * size}" for kind, name in _KINDS.items() for size in _SIZES[kind]
}
_FLOATS = {2: "e", 4: "f", 8: "d"}


@dataclass(frozen=True, slots=True)
class _Dtype:
    code: str  # f4, i8, b1, U5...
    big: bool

    @property
    def kind(self) -> str:
        return self.code[0]

    @property
    def size(self) -> int:
        """Bytes an element; the code of texts counts characters."""
        return int(self.code[1:]) * (4 if self.kind == "U" else 1)

    @property
    def name(self) -> str:
        """As torch calls it; "" if it has no such dtype."""
        return _NAMES.get(self.code, "")


def raw_bytes(node: Node) -> bytes:
    """Bytes, in any of the ways in which pickle writes them.

    Raises:
        ValueError: it is something else.
    """
    match node:
        case bytes():
            return node
        case str():  # Python 2's, which happen to be UTF-8
            return node.encode("utf-8")
        case Call(args=Tuple([str() as text, "latin1"])) if node.path == "_codecs.encode":
            return text.encode("latin-1")
        case Call(args=Tuple([])) if node.path == "builtins.bytes":
            return b""
        case Call(args=Tuple([bytes() as data])) if node.path == "builtins.bytearray":
            return data
    raise ValueError("no bytes")


def dtype_name(node: Node) -> str:
    """`float32`, or numpy's code for what has no such name: `U5`."""
    dtype = _dtype(node)
    return dtype.name or dtype.code


def scalar(call: Call) -> Node:
    """The number, boolean or text that a numpy scalar is."""
    dtype, value = _dtype(call.args.elements[0]), call.args.elements[1]
    return value if dtype.kind == "O" else _value(raw_bytes(value), dtype)


def array(call: Call) -> Node:
    """The tensor of an array of numbers; of texts or objects in one dimension, the list."""
    _, shape, dtype, fortran, data = call.states[0].elements
    return _array(_dtype(dtype), shape.elements, fortran, data)


def array_of_buffer(call: Call) -> Node:
    """The same, as protocol 5 writes it."""
    data, dtype, shape, order = call.args.elements
    return _array(_dtype(dtype), shape.elements, order == "F", data)


def _dtype(node: Node) -> _Dtype:
    """Raises ValueError for structured dtypes and subarrays."""
    code = node.args.elements[0]
    _, order, subarray, names, *_ = node.states[0].elements
    if node.path != "numpy.dtype" or subarray is not None or names is not None:
        raise ValueError("a dtype of several parts")
    return _Dtype(code, order == ">")


def _array(dtype: _Dtype, shape: list[int], fortran: Node, data: Node) -> Node:
    if dtype.kind == "O":
        return _listed(data.elements, shape)
    raw = raw_bytes(data)
    if dtype.name:
        return _tensor(raw, dtype, shape, bool(fortran))
    starts = range(0, len(raw), dtype.size)
    return _listed([_value(raw[at : at + dtype.size], dtype) for at in starts], shape)


def _listed(values: list[Node], shape: list[int]) -> Node:
    if len(shape) > 1 or math.prod(shape) != len(values):
        raise ValueError("only one dimension makes a list")
    return List(values) if shape else values[0]


def _tensor(raw: bytes, dtype: _Dtype, shape: list[int], fortran: bool) -> Node:
    if min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) >= 1 << 63:
        raise ValueError("a size that no array has")
    if len(raw) != math.prod(shape) * dtype.size:
        raise ValueError("as many bytes as elements are needed")
    if dtype.big:
        raw = _swapped(raw, dtype.size // 2 if dtype.kind == "c" else dtype.size)
    tensor = new_tensor("a numpy array", Literal(raw), dtype.name, shape)
    if fortran:
        stride = reversed(contiguous_stride(shape[::-1]))
        tensor.args.elements[3] = Tuple(list(stride))
    return tensor


def _swapped(raw: bytes, size: int) -> bytes:
    swapped = bytearray(len(raw))
    for place in range(size):
        swapped[place::size] = raw[size - 1 - place :: size]
    return bytes(swapped)


def _value(raw: bytes, dtype: _Dtype) -> Node:
    if len(raw) != dtype.size:
        raise ValueError("a value of another size")
    match dtype.kind:
        case "b":
            return raw != b"\0"
        case "i" | "u":
            return int.from_bytes(raw, "big" if dtype.big else "little", signed=dtype.kind == "i")
        case "f":
            return _float(raw, dtype.big)
        case "c":
            half = len(raw) // 2
            parts = _float(raw[:half], dtype.big), _float(raw[half:], dtype.big)
            return Call(Global("__builtin__", "complex"), Tuple([*parts]))
        case "U":
            encoding = "utf-32-be" if dtype.big else "utf-32-le"
            return raw.decode(encoding, "surrogatepass").rstrip("\0")
        case "S":
            return raw.rstrip(b"\0")
    raise ValueError(f"a numpy {dtype.kind} has no plain form")


def _float(raw: bytes, big: bool) -> float:
    value: float = struct.unpack((">" if big else "<") + _FLOATS[len(raw)], raw)[0]
    return value
