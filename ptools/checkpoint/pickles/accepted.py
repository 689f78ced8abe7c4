"""The objects that `torch.load(weights_only=True)` makes, as they are in a tree.

The rules are those of torch/_weights_only_unpickler.py and of the functions it calls, in
torch/_utils.py, from torch 2.6 to 2.13.
"""

from __future__ import annotations

from collections.abc import Callable

from ptools.checkpoint.pickles.globals import DTYPES
from ptools.checkpoint.pickles.nodes import Call, Dict, Global, List, Node, Tuple
from ptools.checkpoint.pickles.tensors import tensor_of

_LAYOUTS = "strided sparse_coo sparse_csr sparse_csc sparse_bsr sparse_bsc _mkldnn jagged".split()
_DEVICES = (
    "cpu cuda ipu xpu mkldnn opengl opencl ideep hip ve fpga maia xla lazy vulkan mps meta hpu "
    "mtia privateuseone"
).split()
_TOO_LARGE = 1 << 63
_TYPES = {"torch.Tensor", "torch.nn.parameter.Parameter"}


def accepts(call: Call) -> bool:
    """Whether `weights_only=True` makes this object; what its arguments hold must be plain.

    Raises:
        CorruptCheckpoint: it is a tensor whose sizes and memory do not add up.
    """
    check = _CALLS.get(call.path)
    if check is None or call.kwargs is not None or call.elements:
        return False
    arguments = call.args.elements
    if call.new and arguments and call.path not in _TYPES:
        return False  # set.__new__(set, [1]) is empty
    return check(call, arguments)


def takes(plain: Call, state: Node) -> bool:
    """Whether weights_only lets BUILD put this state into the object."""
    if plain.path in ("collections.OrderedDict", "collections.Counter"):
        return isinstance(state, Dict)
    match state:  # of a Parameter before torch 0.4: requires_grad, volatile, hooks
        case Tuple([bool(), _, _]):
            return plain.path == "torch.nn.parameter.Parameter"
    return False


def is_tensor(node: Node) -> bool:
    return isinstance(node, Call) and node.path in _TENSORS


def _strided(call: Call, arguments: list[Node]) -> bool:
    match call.path.rpartition(".")[2], arguments:
        case "_rebuild_tensor", [_, _, _, _]:
            sound = True
        case "_rebuild_tensor_v2", [_, _, _, _, bool(), hooks, *rest]:
            sound = _are_hooks(hooks) and _is_metadata(rest)
        case "_rebuild_tensor_v3", [_, _, _, _, bool(), hooks, dtype, *rest]:
            sound = _is_dtype(dtype) and _are_hooks(hooks) and _is_metadata(rest)
        case "_rebuild_qtensor", [_, _, _, _, Tuple(quantizer), bool(), hooks]:
            sound = _is_quantizer(quantizer) and _are_hooks(hooks)
        case "_rebuild_meta_tensor_no_storage", [dtype, _, _, bool()]:
            sound = _is_dtype(dtype)
        case _:
            sound = False
    tensor = tensor_of(call) if sound else None
    if tensor is None:
        return False
    return all(0 <= each < _TOO_LARGE for each in (tensor.offset, *tensor.shape, *tensor.stride))


def _is_dtype(node: Node) -> bool:
    return isinstance(node, Global) and node.path.removeprefix("torch.") in DTYPES


def _is_quantizer(parts: list[Node]) -> bool:
    match parts:
        case [Global(), float() | int(), int()]:
            return True
        case [Global(), scales, zero_points, int()]:
            return is_tensor(scales) and is_tensor(zero_points)
    return False


def _are_hooks(node: Node) -> bool:
    return node is None or isinstance(node, Dict) or _is_call(node, "collections.OrderedDict")


def _is_metadata(rest: list[Node]) -> bool:
    """Whether the bits "conj" and "neg" follow, or nothing."""
    match rest:
        case [] | [None]:
            return True
        case [Dict() as bits]:
            return all(key in ("conj", "neg") and isinstance(bit, bool) for key, bit in bits.pairs)
    return False


def _sparse(_: Call, arguments: list[Node]) -> bool:
    match arguments:
        case [Call(args=Tuple(["torch.sparse_coo"])), Tuple([*tensors, size, None | bool()])]:
            count = 2  # whether it is coalesced came with torch 2.1
        case [Call(args=Tuple(["torch.sparse_coo"])), Tuple([*tensors, size])]:
            count = 2
        case [Call(), Tuple([*tensors, size])]:
            count = 3
        case _:
            return False
    is_size = isinstance(size, Tuple) or _is_call(size, "torch.Size")
    return len(tensors) == count and all(map(is_tensor, tensors)) and is_size


def _parameter(call: Call, arguments: list[Node]) -> bool:
    match call.path.rpartition(".")[2], arguments:
        case "_rebuild_parameter", [data, bool(), hooks]:
            return is_tensor(data) and _are_hooks(hooks)
        case "_rebuild_parameter_with_state", [data, bool(), hooks, state]:
            return is_tensor(data) and _are_hooks(hooks) and _are_attributes(state)
        case "Parameter", [data] | [data, bool()]:
            return is_tensor(data)
    return False


def _typed(call: Call, arguments: list[Node]) -> bool:
    match arguments:
        case [Global() as function, Global() as kind, Tuple() as inner, state]:
            typed_once = function.path in _TENSORS and function.path != call.path
            known = kind.path in _TYPES and _are_attributes(state)
            return typed_once and known and accepts(Call(function, inner))
    return False


def _are_attributes(state: Node) -> bool:
    if isinstance(state, Tuple) and len(state.elements) == 2:
        return all(part is None or isinstance(part, Dict) for part in state.elements)
    return state is None or isinstance(state, Dict)


def _on_device(_: Call, arguments: list[Node]) -> bool:
    match arguments:
        case [data, dtype, str() | Call(), bool()]:
            return is_tensor(data) and _is_dtype(dtype)
    return False


def _device(_: Call, arguments: list[Node]) -> bool:
    match arguments:
        case [str() as name] if ":" in name:
            kind, index = name.split(":", 1)
            return kind in _DEVICES and index.isdecimal() and len(index) < 3
        case [str() as name] | [str() as name, None]:
            return name in _DEVICES
        case [str() as name, int() as index]:
            return name in _DEVICES and 0 <= index < 100
    return False


def _bytes(_: Call, arguments: list[Node]) -> bool:
    match arguments:
        case [str() as text, "latin1" | "latin-1"]:
            return text.isascii() or max(text) < "\u0100"
    return False


def _bytearray(call: Call, arguments: list[Node]) -> bool:
    match arguments:
        case [] | [bytes()]:
            return True
        case [argument]:
            return _is_call(argument, "_codecs.encode")
    return _bytes(call, arguments)


def _size(_: Call, arguments: list[Node]) -> bool:
    match arguments:
        case [List(sizes) | Tuple(sizes)]:
            return all(isinstance(size, int) and 0 <= size < _TOO_LARGE for size in sizes)
    return False


def _layout(_: Call, arguments: list[Node]) -> bool:
    match arguments:
        case [str() as name]:
            return name.removeprefix("torch.") in _LAYOUTS and name.startswith("torch.")
    return False


def _is_call(node: Node, path: str) -> bool:
    return isinstance(node, Call) and node.path == path


_TENSORS: dict[str, Callable[[Call, list[Node]], bool]] = {
    "torch._utils._rebuild_tensor": _strided,
    "torch._utils._rebuild_tensor_v2": _strided,
    "torch._utils._rebuild_tensor_v3": _strided,
    "torch._utils._rebuild_qtensor": _strided,
    "torch._utils._rebuild_meta_tensor_no_storage": _strided,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_nested_tensor": lambda _, parts: (
        len(parts) == 4 and all(map(is_tensor, parts))
    ),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _on_device,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
}
_CALLS: dict[str, Callable[[Call, list[Node]], bool]] = _TENSORS | {
    "collections.OrderedDict": lambda _, arguments: not arguments,
    "collections.Counter": lambda _, arguments: (
        not arguments or (len(arguments) == 1 and isinstance(arguments[0], Dict))
    ),
    "builtins.set": lambda _, arguments: (
        not arguments or (len(arguments) == 1 and isinstance(arguments[0], List | Tuple))
    ),
    "builtins.complex": lambda _, parts: (
        len(parts) <= 2 and all(isinstance(part, int | float) for part in parts)
    ),
    "builtins.bytearray": _bytearray,
    "_codecs.encode": _bytes,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
}
