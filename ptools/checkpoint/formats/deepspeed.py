"""DeepSpeed folders: the fp32 weights that ZeRO has spread over the optimizer files of its ranks.

The layout is that of deepspeed/utils/zero_to_fp32.py: `param_shapes` holds names and shapes in the
order in which the flat partitions hold the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.checkpoint.data.casting import Cast, contiguous
from ptools.checkpoint.data.content import Content, FileRange, Joined, part_of
from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
from ptools.checkpoint.formats.torch_zip import read_torch_zip
from ptools.checkpoint.pickles.nodes import Call, Dict, Node, mapping
from ptools.checkpoint.pickles.tensors import ITEMSIZES, new_tensor, sizes, tensor_of

_FILE = re.compile(
    r"(?:(?:bf16_|fp16_)?zero_pp_rank_(\d+)_)?mp_rank_(\d+)_(model|optim)_states\.pt"
)
_UNIVERSAL = "DeepSpeed's own ds_to_universal.py merges such a checkpoint"
_LEFT_OUT = set(
    "buffer_names param_shapes frozen_param_shapes frozen_param_fragments shared_params "
    "optimizer".split()
)

_Fields: TypeAlias = Mapping[Node, Node]
_Partition: TypeAlias = Sequence[Content]  # of one rank: a flat fp32 tensor for each group


def read_deepspeed(folder: Path) -> Checkpoint:
    """Read what `save_checkpoint` has written, the weights in fp32 if ZeRO kept them so.

    A folder with a file `latest` stands for the folder that this file names.

    Raises:
        CorruptCheckpoint: a rank's file is missing or damaged, or the weights do not add up.
        NotACheckpoint: the folder is of another kind, or its model was split in another way.
    """
    folder = _latest(folder)
    models, optimizers = _files(folder)
    model = read_torch_zip(models[0])
    try:
        fields = _fields(model.root)
        if any(fields.get(key) is not None for key in ("ds_autoep_layers", "autoep_layers")):
            raise NotACheckpoint(f"{folder} was saved by expert parallelism", _UNIVERSAL)
        if optimizers:
            return _from_zero(folder, fields, models, optimizers)
        if "zero_pp_rank" in models[0].name:
            raise CorruptCheckpoint(f"{folder} lacks the *_optim_states.pt, which hold the weights")
        notes = []
        if fields.get("param_shapes") is not None:
            notes.append(
                "the weights are the 16-bit ones: there are no *_optim_states.pt with fp32"
            )
        return Checkpoint(folder, "DeepSpeed ZeRO", model.root, (models[0],), notes=notes)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptCheckpoint(f"{folder} does not add up: {error}") from error


def _latest(folder: Path) -> Path:
    path = folder / "latest"
    if any(folder.glob("*_model_states.pt")) or not path.is_file():
        return folder
    with path.open("rb") as file:
        tag = file.read(256).decode("utf-8", "replace").strip()
    if tag not in {entry.name for entry in folder.iterdir() if entry.is_dir()}:
        raise CorruptCheckpoint(f"{path} names {tag!r}, which is no folder beside it")
    return folder / tag


def _files(folder: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """The files of model and optimizer by rank."""
    found: dict[str, dict[int, Path]] = {"model": {}, "optim": {}}
    for path in sorted(folder.glob("*_states.pt")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            why = f"pipeline or expert parallelism: {path.name}"
            raise NotACheckpoint(f"{folder} was saved by {why}", _UNIVERSAL)
        if int(match[2]):
            why = f"tensor parallelism: {path.name}"
            raise NotACheckpoint(f"{folder} was saved by {why}", _UNIVERSAL)
        rank, files = int(match[1] or 0), found[match[3]]
        if rank in files:
            twice = f"{files[rank].name} and {path.name}"
            raise CorruptCheckpoint(f"{folder} has two files of rank {rank}: {twice}")
        files[rank] = path
    if 0 not in found["model"]:
        raise NotACheckpoint(f"{folder} has no *_model_states.pt of rank 0")
    return found["model"], found["optim"]


def _from_zero(
    folder: Path, fields: _Fields, models: dict[int, Path], optimizers: dict[int, Path]
) -> Checkpoint:
    states = {rank: _optimizer_state(path) for rank, path in optimizers.items()}
    first = states[min(states)]
    count = first["partition_count"]
    world = count if isinstance(count, int) else max(count.elements)
    used = [models[0], *_complete(optimizers, world)]
    stage = _number(first.get("zero_stage", 1))
    groups = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    if stage not in (1, 2, 3) or groups not in first:
        raise NotACheckpoint(f"{used[1]} has no fp32 weights of ZeRO")
    partitions = [
        [_flat(f"{groups} of rank {rank}", node, "float32")[1] for node in state[groups].elements]
        for rank, state in sorted(states.items())
    ]
    if stage < 3:
        weights = _stage_2(fields, partitions, first.get("param_alignment_paddings"))
    else:
        ranks = [fields]
        if _fields(fields.get("frozen_param_shapes")):
            used[:1] = _complete(models, world)
            ranks = [_fields(read_torch_zip(path).root) for path in used[:world]]
        weights = _stage_3(ranks, partitions)
    kept = f"the weights are what ZeRO {stage} kept in fp32 on {world} ranks, put together"
    note = f"{kept}; the optimizer's state is left out"
    return Checkpoint(
        folder, "DeepSpeed ZeRO", _root(fields, weights, stage), tuple(used), notes=[note]
    )


def _fields(node: Node) -> _Fields:
    return dict(mapping(node) or ())


def _optimizer_state(path: Path) -> _Fields:
    state = _fields(_fields(read_torch_zip(path).root).get("optimizer_state_dict"))
    if "partition_count" not in state:
        raise NotACheckpoint(f"{path} is no optimizer file of ZeRO")
    return state


def _number(node: Node) -> Node:
    """A number, or a member of an enum of numbers."""
    return node.args.elements[0] if isinstance(node, Call) else node


def _complete(files: Mapping[int, Path], world: int) -> list[Path]:
    """The files of all ranks in their order."""
    sample = files[min(files)]
    missing = next((rank for rank in range(world) if rank not in files), None)
    if missing is not None:
        name = re.sub(r"(zero_pp_rank_)\d+", rf"\g<1>{missing}", sample.name)
        raise CorruptCheckpoint(
            f"{sample.with_name(name)} is missing: {world} ranks saved this checkpoint",
            hint="copy the folder again, all of its files",
        )
    if len(files) > world:
        extra = files[max(files)]
        raise CorruptCheckpoint(f"{extra} is of another checkpoint: {world} ranks saved this one")
    return [files[rank] for rank in range(world)]


def _flat(name: str, node: Node, dtype: str | None = None) -> tuple[str, Content]:
    """The dtype and the bytes of a flat tensor."""
    tensor = tensor_of(node)
    if tensor is None or tensor.layout != "strided" or not tensor.contiguous:
        raise CorruptCheckpoint(f"{name} is no plain tensor")
    if dtype not in (None, tensor.dtype):
        raise CorruptCheckpoint(f"{name} is {tensor.dtype}, not {dtype}")
    storage = tensor.storage
    if storage is None or not isinstance(storage.content, FileRange):
        raise CorruptCheckpoint(f"{name} is compressed, as no checkpoint of DeepSpeed is")
    start = tensor.offset * ITEMSIZES[tensor.dtype]
    return tensor.dtype, part_of(storage.content, start, tensor.nbytes)


def _cut(parts: Sequence[Content], start: int, nbytes: int) -> Content:
    """`nbytes` from `start` on of contents that follow each other, fewer if there are not as many.

    `part_of` would read a joined content from its start, for each weight anew.
    """
    cut: list[Content] = []
    for part in parts:
        low, high = max(start, 0), min(start + nbytes, part.nbytes)
        if low < high:
            cut.append(part_of(part, low, high - low))
        start -= part.nbytes
    return cut[0] if len(cut) == 1 else Joined(tuple(cut))


def _stage_2(fields: _Fields, partitions: Sequence[_Partition], paddings: Node) -> dict[str, Node]:
    """Each group is one vector of all its parameters, cut into as many parts as there are ranks."""
    weights: dict[str, Node] = {}
    fragments = _fields(fields.get("frozen_param_fragments"))
    for name, size in _fields(fields.get("frozen_param_shapes")).items():  # which are whole here
        tensor = tensor_of(fragments[name])
        if tensor is None or tensor.shape != sizes(size):
            raise CorruptCheckpoint(f"{name} is not of the shape that frozen_param_shapes tells")
        weights[name] = fragments[name]
    groups = fields["param_shapes"].elements
    for index, (group, *parts) in enumerate(zip(groups, *partitions, strict=True)):
        shapes = mapping(group) or []
        gaps = [0] * len(shapes) if paddings is None else paddings.elements[index].elements
        at = 0
        for (name, size), gap in zip(shapes, gaps, strict=True):
            shape = sizes(size)
            nbytes = 4 * math.prod(shape)
            weights[name] = new_tensor(name, _cut(parts, at, nbytes), "float32", shape)
            at += nbytes + 4 * gap
        # The end is padded, by how much depends on DeepSpeed's version.
        align = 4 * 2 * len(partitions)
        there = sum(part.nbytes for part in parts)
        if -(-at // align) != -(-there // align):
            says = f"the shapes need {at} bytes of group {index}, there are {there}"
            raise CorruptCheckpoint(f"the partitions do not fit the model: {says}")
    return weights


def _stage_3(ranks: Sequence[_Fields], partitions: Sequence[_Partition]) -> dict[str, Node]:
    """Each parameter is cut into as many parts as there are ranks, the last one padded."""
    weights: dict[str, Node] = {}
    for name, size in _fields(ranks[0].get("frozen_param_shapes")).items():
        fragments = [_flat(name, _fields(rank["frozen_param_fragments"])[name]) for rank in ranks]
        dtype, shape = fragments[0][0], sizes(size)
        content = _cut([part for _, part in fragments], 0, ITEMSIZES[dtype] * math.prod(shape))
        weights[name] = new_tensor(name, content, dtype, shape)
    at = 0
    for group in ranks[0]["param_shapes"].elements:
        for name, size in mapping(group) or ():
            shape = sizes(size)
            share = 4 * -(-math.prod(shape) // len(partitions))
            parts = [_cut(partition, at, share) for partition in partitions]
            content = _cut(parts, 0, 4 * math.prod(shape))
            weights[name] = new_tensor(name, content, "float32", shape)
            at += share
    there = {sum(group.nbytes for group in partition) for partition in partitions}
    if there != {at}:
        says = f"the shapes need {at} bytes of a rank, there are {max(there)}"
        raise CorruptCheckpoint(f"the partitions do not fit the model: {says}")
    return weights


def _root(fields: _Fields, weights: dict[str, Node], stage: int) -> Dict:
    """The model's file with the whole weights as its `module`, in the model's order."""
    for alias, name in mapping(fields.get("shared_params")) or ():
        if name in weights:
            weights[alias] = weights[name]
    module = dict(_fields(fields["module"]))
    for name in fields["buffer_names"].elements:
        if name in module:
            module[name] = _widened(name, module[name])
    if stage == 3:  # its parameters are empty there
        known = {*fields["buffer_names"].elements, *weights}
        module = {name: node for name, node in module.items() if name in known}
    whole = replace(fields["module"], pairs=list({**module, **weights}.items()))
    pairs = [(key, node) for key, node in fields.items() if key not in _LEFT_OUT]
    return Dict([(key, whole if key == "module" else node) for key, node in pairs])


def _widened(name: str, node: Node) -> Node:
    """A buffer in fp32 if it was saved in 16 bits, as DeepSpeed saves all of a 16-bit model."""
    tensor = tensor_of(node)
    if tensor is None or tensor.dtype not in ("float16", "bfloat16"):
        return node
    content = Cast(contiguous(tensor), tensor.dtype, "float32")
    return new_tensor(name, content, "float32", tensor.shape)
