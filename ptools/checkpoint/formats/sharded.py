"""Checkpoints in several files, with an index that says in which one each tensor is.

The index is Hugging Face's: JSON with a `weight_map` from names to files (transformers and
huggingface_hub, `save_torch_state_dict`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.checkpoint.data.content import read_at
from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.formats.safetensors import parse_object
from ptools.checkpoint.pickles.nodes import Node, mapping
from ptools.checkpoint.pickles.tensors import ordered_dict
from ptools.files import human_bytes

LARGEST_INDEX = 100_000_000  # bytes


def read_index(path: Path) -> Checkpoint:
    """The tensors of all shards as one ordered dict, in the order of the index.

    Raises:
        CorruptCheckpoint: the index is no sound one, shards are missing or hold other tensors.
    """
    from ptools.checkpoint.formats import read_file

    weight_map = read_weight_map(path)
    files = {shard: path.parent / shard for shard in dict.fromkeys(weight_map.values())}
    missing = [shard for shard, file in files.items() if not file.is_file()]
    if missing:
        raise CorruptCheckpoint(
            f"{path} names {len(missing)} files that are missing: {', '.join(missing)}",
            hint=f"put them into {path.parent}",
        )
    shards = {shard: read_file(file) for shard, file in files.items()}
    nodes = {shard: _entries(checkpoint) for shard, checkpoint in shards.items()}
    for name, shard in weight_map.items():
        if name not in nodes[shard]:
            raise CorruptCheckpoint(f"{name} is not in {shard}, although {path} says so")
    root = ordered_dict([(name, nodes[shard][name]) for name, shard in weight_map.items()])
    formats = {checkpoint.format for checkpoint in shards.values()}
    return Checkpoint(
        path,
        "sharded safetensors" if formats == {"safetensors"} else "sharded torch",
        root,
        (path, *files.values()),
        notes=[note for checkpoint in shards.values() for note in checkpoint.notes]
        + _left_out(weight_map, nodes),
    )


def read_weight_map(path: Path) -> dict[str, str]:
    """The names of all tensors, each with the file that holds it.

    Raises:
        CorruptCheckpoint: the index is no sound one, or names a file outside its folder.
    """
    size = path.stat().st_size
    if size > LARGEST_INDEX:
        raise CorruptCheckpoint(f"{path}: an index of {human_bytes(size)} should be small")
    weight_map = parse_object(path, read_at(path, 0, size)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpoint(f"{path} is no index of a checkpoint: it has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _stays_inside(shard):
            raise CorruptCheckpoint(f"{path}: {name} is in {shard!r}, which is no file beside it")
    return weight_map


def _stays_inside(shard: str) -> bool:
    """Whether a file's name leads into the index's folder, on any system."""
    paths = PurePosixPath(shard), PureWindowsPath(shard)
    return all(path.parts and ".." not in path.parts and not path.anchor for path in paths)


def _entries(checkpoint: Checkpoint) -> Mapping[str, Node]:
    pairs = mapping(checkpoint.root)
    if pairs is None:
        raise CorruptCheckpoint(f"{checkpoint.path} is no shard: it holds no dict of tensors")
    return {name: node for name, node in pairs if isinstance(name, str)}


def _left_out(weight_map: Mapping[str, str], nodes: Mapping[str, Mapping[str, Node]]) -> list[str]:
    extra = [
        f"{name} of {shard}"
        for shard, entries in nodes.items()
        for name in entries
        if weight_map.get(name) != shard
    ]
    more = ", ..." if len(extra) > 3 else ""
    return [f"not in the index, left out: {', '.join(extra[:3])}{more}"] if extra else []
