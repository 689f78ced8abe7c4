"""The files to write: one, or shards with their index."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ptools.checkpoint.data.content import Literal
from ptools.checkpoint.output.destination import Destination
from ptools.checkpoint.output.safetensors_file import plan_safetensors
from ptools.checkpoint.output.torch_file import plan_torch_file
from ptools.checkpoint.output.writing import Plan
from ptools.checkpoint.pickles.nodes import Node, mapping
from ptools.checkpoint.pickles.tensors import Tensor, named_tensors, ordered_dict


def plans(root: Node, where: Destination) -> dict[str, Plan]:
    """The files to write by name; of a single one, that is its destination's."""
    tensors = named_tensors(root) if where.safetensors or where.shard_size else {}
    if where.shard_size is not None:
        return _shards(root, tensors, where.shard_size, where.safetensors)
    if where.safetensors:
        return {where.path.name: plan_safetensors(tensors)}
    return {where.path.name: plan_torch_file(root, where.path.stem)}


def _shards(
    root: Node, tensors: Mapping[str, Tensor], most: int, safetensors: bool
) -> dict[str, Plan]:
    """Files of at most `most` bytes of weights and their index, named as Hugging Face does."""
    groups = _grouped(tensors, most)
    stem, suffix = ("model", "safetensors") if safetensors else ("pytorch_model", "bin")
    files: dict[str, Plan] = {}
    nodes = dict(mapping(root) or ())
    weight_map: dict[str, str] = {}
    for index, group in enumerate(groups, 1):
        name = f"{stem}-{index:05}-of-{len(groups):05}.{suffix}"
        weight_map |= dict.fromkeys(group, name)
        if safetensors:
            files[name] = plan_safetensors(group)
        else:
            pairs: list[tuple[Node, Node]] = [(key, nodes[key]) for key in group]
            files[name] = plan_torch_file(ordered_dict(pairs), name.partition(".")[0])
    total = sum(tensor.nbytes for tensor in tensors.values())
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    index_bytes = index_text.encode() + b"\n"
    files[f"{stem}.{suffix}.index.json"] = Plan(((0, Literal(index_bytes)),), len(index_bytes))
    return files


def _grouped(tensors: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """Fill file after file; tensors that share memory stay together."""
    groups: list[dict[str, Tensor]] = [{}]
    sizes = [0]
    home: dict[int, int] = {}
    for name, tensor in tensors.items():
        known = home.get(id(tensor.storage)) if tensor.storage else None
        nbytes = 0 if known is not None else _weight(tensor)
        if known is None:
            if groups[-1] and sizes[-1] + nbytes > most:
                groups.append({})
                sizes.append(0)
            known = len(groups) - 1
            home[id(tensor.storage)] = known
        groups[known][name] = tensor
        sizes[known] += nbytes
    return groups


def _weight(tensor: Tensor) -> int:
    return tensor.storage.nbytes if tensor.storage else 0
