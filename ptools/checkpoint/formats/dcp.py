"""torch.distributed.checkpoint folders: `.metadata`, and shards in `.distcp` files.

The layout is that of torch/distributed/checkpoint/{metadata,filesystem,_nested_dict}.py in torch's
source: `.metadata` is a pickled `Metadata`, each item of a `.distcp` file a torch zip of its own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.checkpoint.data.archive import read_archive
from ptools.checkpoint.data.blocks import Block, Interleaved, check_cover
from ptools.checkpoint.data.content import Content, FileRange, Joined, part_of
from ptools.checkpoint.data.copying import combined_crc
from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
from ptools.checkpoint.formats.torch_zip import LARGEST_PICKLE, read_records
from ptools.checkpoint.pickles.nodes import Call, Dict, List, Node, Tuple
from ptools.checkpoint.pickles.tensors import (
    ITEMSIZES,
    Tensor,
    contiguous_stride,
    new_tensor,
    sizes,
    tensor_of,
)
from ptools.checkpoint.pickles.unpickle import unpickle

_DEEPEST = 100  # levels of nesting
_MOST_EMPTY = 100  # positions of a list that nothing was saved for: empty dicts are not

_Sizes: TypeAlias = tuple[int, ...]
_Items: TypeAlias = Mapping[tuple[str, _Sizes | None], "_Item"]  # by name, and place in the tensor


@dataclass(frozen=True, slots=True)
class _Item:
    """Where a torch zip lies that holds one object or one shard."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Shard:
    """A tensor that is a part of another one, its place in that, and its bytes."""

    at: _Sizes
    tensor: Tensor
    content: FileRange


def read_dcp(folder: Path) -> Checkpoint:
    """Read what `torch.distributed.checkpoint.save` has written, each tensor as one.

    Raises:
        CorruptCheckpoint: a file is missing or damaged, or shards do not make up their tensor.
        NotACheckpoint: the folder is of another kind.
    """
    path = folder / ".metadata"
    try:
        metadata = _attributes(unpickle(_pickle(path)))
        items = _items(folder, metadata["storage_data"])
        described = metadata["state_dict_metadata"].pairs
        entries = {name: _entry(name, entry, items) for name, entry in described}
        root = _nested(entries, metadata.get("planner_data"))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptCheckpoint(f"{path} does not add up: {error}") from error
    files = sorted({item.path for item in items.values()})
    return Checkpoint(folder, "DCP folder", root, (path, *files))


def _pickle(path: Path) -> bytes:
    if not path.is_file():
        if any(path.parent.glob("__*.metadata")):
            raise NotACheckpoint(
                f"{path.parent} holds a part of a checkpoint for each rank, and nothing for all",
                hint="save it with use_collectives=True",
            )
        raise NotACheckpoint(f"{path.parent} is no DCP folder: it has no .metadata")
    if path.stat().st_size > LARGEST_PICKLE:
        raise CorruptCheckpoint(f"{path} is too large to be a checkpoint's metadata")
    return path.read_bytes()


def _attributes(node: Node) -> dict[str, Node]:
    """The attributes of a pickled dataclass."""
    return dict(node.states[0].pairs) if node.states else {}


def _items(folder: Path, storage_data: Dict) -> _Items:
    items = {}
    for index, info in storage_data.pairs:
        key, lies = _attributes(index), _attributes(info)
        name, offset, file = key["fqn"], key.get("offset"), lies["relative_path"]
        if not isinstance(name, str):
            raise ValueError("a name is no text")
        if Path(file).name != file:
            raise CorruptCheckpoint(f"{name} is said to lie outside of the folder, in {file!r}")
        if file.endswith(".safetensors"):
            raise NotACheckpoint(
                f"{folder} keeps its tensors in safetensors files",
                hint="give these files instead of the folder",
            )
        if lies.get("transform_descriptors"):
            raise NotACheckpoint(f"{name} was saved through an extension, which is not read")
        start, nbytes = sizes(Tuple([lies["offset"], lies["length"]]))
        where = None if offset is None else sizes(offset)
        items[name, where] = _Item(folder / file, start, nbytes)
    _check_files(folder, items)
    return items


def _check_files(folder: Path, items: _Items) -> None:
    """Refuse a folder that lacks a file, or the end of one."""
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    lost: dict[Path, list[str]] = defaultdict(list)
    for (name, _), item in items.items():
        if item.offset + item.nbytes > sizes.get(item.path.name, -1):
            lost[item.path].append(name)
    for path, names in lost.items():
        which = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        what = "ends early" if path.name in sizes else "is missing"
        raise CorruptCheckpoint(
            f"{path} {what}: it should hold {which}", hint="copy the folder again, all of its files"
        )


def _entry(name: str, described: Call, items: _Items) -> Node:
    """The node of one name of the state_dict, which is a tensor or a pickled object."""
    kind = described.path.rpartition(".")[2]
    if kind == "BytesStorageMetadata":
        return _saved(name, None, items)
    if kind != "TensorStorageMetadata":
        raise CorruptCheckpoint(f"{name} is of an unknown kind, {kind}")
    says = _attributes(described)
    dtype, shape = says["properties"].states[0].elements[0].name, sizes(says["size"])
    if dtype not in ITEMSIZES:
        raise CorruptCheckpoint(f"{name} is of an unknown dtype, {dtype}")
    chunks = [_attributes(chunk) for chunk in says["chunks"].elements]
    boxes = [(sizes(chunk["offsets"]), sizes(chunk["sizes"])) for chunk in chunks]
    check_cover(name, shape, boxes)
    shards = [_shard(name, dtype, *box, items) for box in boxes if math.prod(box[1])]
    return new_tensor(name, _content(shape, ITEMSIZES[dtype], shards), dtype, shape)


def _saved(name: str, where: _Sizes | None, items: _Items) -> Node:
    """What one item of a file holds."""
    item = items.get((name, where))
    if item is None:
        raise CorruptCheckpoint(f"{name} is incomplete: .metadata does not tell where all of it is")
    try:
        records = read_archive(item.path, item.offset, item.nbytes)
        if "data.pkl" not in records:
            raise CorruptCheckpoint(f"{item.path} holds something else there")
        return read_records(records)[0]
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"{name} cannot be read: {error}", error.hint) from error


def _shard(name: str, dtype: str, at: _Sizes, sizes: _Sizes, items: _Items) -> _Shard:
    tensor = tensor_of(_saved(name, at, items))
    if tensor is None or tensor.layout != "strided" or _is_lazy(tensor):
        raise CorruptCheckpoint(f"{name} has a shard that is no plain tensor")
    if (tensor.dtype, tensor.shape) != (dtype, sizes):
        is_one = f"{tensor.dtype} of {list(tensor.shape)}"
        raise CorruptCheckpoint(f"{name} has a shard {is_one}, not {dtype} of {list(sizes)}")
    if tensor.storage is None or not _is_dense(tensor):
        raise CorruptCheckpoint(f"{name} has a shard with gaps")
    start = tensor.offset * ITEMSIZES[dtype]
    content = part_of(tensor.storage.content, start, tensor.nbytes)
    if not isinstance(content, FileRange):
        raise CorruptCheckpoint(f"{name} has a compressed shard")
    return _Shard(at, tensor, content)


def _is_lazy(tensor: Tensor) -> bool:
    """Whether the values are still to be conjugated or negated."""
    return any(isinstance(part, Dict) and part.pairs for part in tensor.call.args.elements)


def _is_dense(tensor: Tensor) -> bool:
    expected = 1
    for step, size in sorted(zip(tensor.stride, tensor.shape, strict=True)):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def _content(shape: _Sizes, itemsize: int, shards: Sequence[_Shard]) -> Content:
    """The bytes of a tensor: one shard after the other where possible, else interleaved."""
    stride = contiguous_stride(shape)
    starts = {_place(shard.at, stride): shard for shard in shards}
    if all(shard.tensor.contiguous and _is_run(shard.tensor.shape, stride) for shard in shards):
        return _joined([starts[start].content for start in sorted(starts)])
    blocks = [
        Block(shard.content.path, shard.content.offset, shard.at, tensor.shape, tensor.stride)
        for shard in shards
        for tensor in [shard.tensor]
    ]
    return Interleaved(shape, itemsize, tuple(blocks))


def _place(index: Sequence[int], stride: Sequence[int]) -> int:
    return sum(at * step for at, step in zip(index, stride, strict=True))


def _is_run(shape: _Sizes, stride: Sequence[int]) -> bool:
    """Whether a box of a tensor with these strides lies in one piece."""
    return _place([size - 1 for size in shape], stride) + 1 == math.prod(shape)


def _joined(parts: Sequence[FileRange]) -> Content:
    if len(parts) == 1:
        return parts[0]
    if any(part.crc is None for part in parts):
        return Joined(tuple(parts))
    crc = reduce(lambda crc, part: combined_crc(crc, part.crc or 0, part.nbytes), parts, 0)
    return Joined(tuple(parts), crc)


def _nested(entries: Mapping[str, Node], planner_data: Node) -> Node:
    """The state_dict as it was before it was flattened, from the path of each name."""
    known = dict(planner_data.pairs) if isinstance(planner_data, Dict) else {}
    tree: dict[Any, Any] = {}
    for name, node in entries.items():
        path = known[name].elements if name in known else [name]
        if not 0 < len(path) <= _DEEPEST:
            raise CorruptCheckpoint(f"{name} has a path of {len(path)} elements")
        level = tree
        for key in path[:-1]:
            level = level.setdefault(key, {})
        if not isinstance(level, dict) or path[-1] in level:
            raise CorruptCheckpoint(f"{name} is where something else is")
        level[path[-1]] = node
    return _container(tree)


def _container(level: dict[Any, Any]) -> Node:
    values = {
        key: _container(value) if isinstance(value, dict) else value for key, value in level.items()
    }
    if all(isinstance(key, str) for key in values):
        return Dict(list(values.items()))
    if not all(type(key) is int and key >= 0 for key in values):
        raise CorruptCheckpoint("a container of the state_dict is neither a dict nor a list")
    if max(values) >= len(values) + _MOST_EMPTY:
        raise CorruptCheckpoint(f"a list of {len(values)} elements has one at {max(values)}")
    return List([values.get(position) for position in range(max(values) + 1)])
