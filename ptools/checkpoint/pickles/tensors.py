"""The tensors in a tree: what a pickled `_rebuild_...` call says of shape, dtype and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ptools.checkpoint.data.content import Content
from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.pickles.nodes import Call, Global, Node, Storage, Tuple, mapping, walk

# torch's storage class -> dtype, bytes an element (torch/storage.py, _dtype_to_storage_type_map)
STORAGES = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexDoubleStorage": ("complex128", 16),
    "ComplexFloatStorage": ("complex64", 8),
    "QUInt8Storage": ("quint8", 1),
    "QInt8Storage": ("qint8", 1),
    "QInt32Storage": ("qint32", 4),
    "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1),
    "UntypedStorage": ("uint8", 1),
}
KINDS = {dtype: kind for kind, (dtype, _) in STORAGES.items() if kind != "UntypedStorage"}
ITEMSIZES = dict(STORAGES.values()) | {
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "complex32": 4,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
}
_MOST = 1 << 63  # torch's sizes are signed integers of 64 bits
_MOST_DIMENSIONS = 64
_MOST_WRAPPERS = 10  # a Parameter or a subclass of tensors, and these in each other
_OTHER_LAYOUTS = {  # tensors made of tensors
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_wrapper_subclass": "subclass",
    "torch._utils._rebuild_device_tensor_from_numpy": "device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "device",
}


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """What is known of one tensor; offset and stride count elements.

    `layout` is "strided", "quantized", "meta" (no storage), or that of a tensor made of others
    ("sparse", "nested", ...), of which shape and dtype are not known here.
    `call` is the innermost call, below those that make it a Parameter or a subclass; its arguments
    may be changed, to change the tensor.
    """

    call: Call
    layout: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    offset: int = 0
    storage: Storage | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEMSIZES.get(self.dtype, 1)

    @property
    def reach(self) -> int:
        """One past the last element of the storage that the tensor sees, counted from 0."""
        if not self.numel:
            return self.offset
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return self.offset + last + 1

    @property
    def contiguous(self) -> bool:
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return self.numel == 0
            expected *= size
        return True


def new_tensor(name: str, content: Content, dtype: str, shape: Sequence[int]) -> Call:
    """The node of a contiguous tensor with a storage of its own, on the CPU.

    Raises:
        CorruptCheckpoint: the content is not as long as dtype and shape say, or torch has no such
            dtype.
    """
    if dtype not in ITEMSIZES:
        raise CorruptCheckpoint(f"{name} is of an unknown dtype, {dtype}")
    numel = math.prod(shape)
    if content.nbytes != numel * ITEMSIZES[dtype]:
        raise CorruptCheckpoint(f"{name} has {content.nbytes} bytes, not {numel} of {dtype}")
    kind = KINDS.get(dtype, "UntypedStorage")  # dtypes newer than torch 2.1 have no class
    itemsize = STORAGES[kind][1]
    storage = Storage(kind, name, "cpu", content.nbytes // itemsize, itemsize, content)
    return view(storage, dtype, 0, shape, contiguous_stride(shape))


def view(
    storage: Storage, dtype: str, offset: int, shape: Sequence[int], stride: Sequence[int]
) -> Call:
    """The node of a tensor on a storage; offset and stride count elements."""
    arguments = [storage, offset, Tuple(list(shape)), Tuple(list(stride)), False, ordered_dict([])]
    if storage.kind != "UntypedStorage":
        return Call(Global("torch._utils", "_rebuild_tensor_v2"), Tuple(arguments))
    arguments.append(Global("torch", dtype))
    return Call(Global("torch._utils", "_rebuild_tensor_v3"), Tuple(arguments))


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor, as torch gives them."""
    stride: list[int] = []
    step = 1
    for size in reversed(shape):
        stride.insert(0, step)
        step *= max(size, 1)
    return tuple(stride)


def ordered_dict(pairs: list[tuple[Node, Node]]) -> Call:
    """The node of a `collections.OrderedDict`, which a state_dict is."""
    return Call(Global("collections", "OrderedDict"), Tuple([]), pairs=pairs)


def tensor_of(node: Node) -> Tensor | None:
    """The tensor that a node stands for, if it does.

    Raises:
        CorruptCheckpoint: it is one, but sizes and memory do not add up.
    """
    call = _innermost(node)
    if call is None:
        return None
    if call.path in _OTHER_LAYOUTS:
        return Tensor(call, _OTHER_LAYOUTS[call.path])
    try:
        tensor = _read(call, call.args.elements)
        if tensor is not None and tensor.numel >= _MOST:
            raise ValueError("it has more elements than torch can count")
    except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise CorruptCheckpoint(f"a tensor does not add up: {error}") from error
    return tensor


def tensors_below(root: Node) -> Iterator[Tensor]:
    """Each tensor below a node once, those that others are made of included."""
    seen: set[int] = set()
    for node in walk(root):
        tensor = tensor_of(node)
        if tensor is not None and id(tensor.call.args) not in seen:
            seen.add(id(tensor.call.args))
            yield tensor


def named_tensors(node: Node) -> dict[str, Tensor]:
    """The entries of a dict that are tensors, by name."""
    found = {}
    for name, value in mapping(node) or ():
        if isinstance(name, str) and (tensor := tensor_of(value)):
            found[name] = tensor
    return found


def _innermost(node: Node) -> Call | None:
    """Through Parameter and `_rebuild_from_type_v2` to the call that makes the tensor."""
    for _ in range(_MOST_WRAPPERS):
        if not (isinstance(node, Call) and isinstance(node.args, Tuple)):
            return None
        arguments = node.args.elements
        match node.path.rpartition(".")[2]:
            case "_rebuild_parameter" | "_rebuild_parameter_with_state" if arguments:
                node = arguments[0]
            case "_rebuild_from_type_v2" if len(arguments) > 2:
                node = Call(arguments[0], arguments[2])
            case name if node.path.startswith("torch._utils._rebuild_") and name != "_rebuild_":
                return node
            case _:
                return None
    raise CorruptCheckpoint(f"a tensor is made of another one, over {_MOST_WRAPPERS} times")


def _read(call: Call, arguments: list[Node]) -> Tensor | None:
    match call.path.rpartition(".")[2], arguments:
        case "_rebuild_meta_tensor_no_storage", [Global() as dtype, size, stride, *_]:
            return Tensor(call, "meta", dtype.name, sizes(size), sizes(stride))
        case "_rebuild_tensor" | "_rebuild_tensor_v2", [Storage() as storage, at, size, stride, *_]:
            return _strided(call, "strided", STORAGES[storage.kind][0], storage, at, size, stride)
        case "_rebuild_qtensor", [Storage() as storage, at, size, stride, *_]:
            return _strided(call, "quantized", STORAGES[storage.kind][0], storage, at, size, stride)
        case "_rebuild_tensor_v3", [
            Storage() as storage,
            at,
            size,
            stride,
            _,
            _,
            Global() as dtype,
            *_,
        ]:
            return _strided(call, "strided", dtype.name, storage, at, size, stride)
    return None


def _strided(
    call: Call, layout: str, dtype: str, storage: Storage, at: Node, size: Node, stride: Node
) -> Tensor:
    tensor = Tensor(call, layout, dtype, sizes(size), sizes(stride), at, storage)
    room = storage.nbytes // ITEMSIZES[dtype]
    if not isinstance(at, int) or at < 0:
        raise ValueError("its offset is negative")
    if len(tensor.shape) != len(tensor.stride):
        raise ValueError("as many strides as dimensions are needed")
    if storage.content is not None and tensor.numel and tensor.reach > room:
        raise ValueError(f"it needs {tensor.reach} elements, storage {storage.key} has {room}")
    return tensor


def sizes(node: Node) -> tuple[int, ...]:
    """The numbers of a torch.Size or a tuple.

    Raises:
        ValueError: they are none, or no tensor has such sizes.
    """
    if isinstance(node, Call) and node.path == "torch.Size":
        node = node.args.elements[0]
    values = tuple(node.elements)
    if not all(isinstance(value, int) and 0 <= value < _MOST for value in values):
        raise ValueError("a size is no number, or out of bounds")
    if len(values) > _MOST_DIMENSIONS:
        raise ValueError(f"it has {len(values)} dimensions")
    return values
