"""The tensors of a checkpoint as a parameters-only summary: no pickle is executed."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptools.errors import PtoolsError, UsageError
from ptools.summary.report import Layer, Summary
from ptools.summary.table import shape_text

_SAFETENSORS_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "ema")


@dataclass(frozen=True)
class _Entry:
    """One tensor; `identity` is the same for two that share their memory."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    identity: object


def summarize_checkpoint(path: Path) -> Summary:
    """Parameters by name, as a tree; tensors that share memory count once.

    A checkpoint doesn't say which of its tensors are buffers, so all count as parameters.
    Raises PtoolsError if the file is no checkpoint or could only be read by executing its pickle.
    """
    entries = list(_safetensors(path) if path.suffix == ".safetensors" else _torch_file(path))
    if not entries:
        raise UsageError(f"{path} holds no tensors")
    layers = tuple(_layers(entries))
    root = layers[0]
    dtypes: dict[str, int] = {}
    for entry in {entry.identity: entry for entry in entries}.values():
        dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + math.prod(entry.shape)
    return Summary(
        model=path.name,
        rung="parameters",
        attempts=(),
        inputs=None,
        input_source=None,
        input_origin=None,
        parameters=root.parameters,
        trainable=root.trainable,
        buffers=0,
        bytes=root.bytes,
        dtypes=dtypes,
        macs=None,
        backward_macs=None,
        layers=layers,
        notes=("a checkpoint holds no code: buffers count as parameters, nothing is run",),
    )


def _layers(entries: list[_Entry]) -> Iterator[Layer]:
    """The dotted names as a tree; a tensor is a layer whose type is its dtype and shape."""
    sums: dict[str, list[int]] = {"": [0, 0]}
    leaves: dict[str, _Entry] = {}
    first: dict[object, str] = {}
    for entry in entries:
        owner = first.setdefault(entry.identity, entry.name)
        counts = (math.prod(entry.shape), entry.size) if owner == entry.name else (0, 0)
        parts = entry.name.split(".")
        for end in range(len(parts) + 1):
            total = sums.setdefault(".".join(parts[:end]), [0, 0])
            total[0] += counts[0]
            total[1] += counts[1]
        leaves[entry.name] = entry
    for path in _preorder(sums):
        leaf = leaves.get(path)
        tied = first[leaf.identity] if leaf else path
        yield Layer(
            path=path,
            type=f"{leaf.dtype} {shape_text([leaf.shape])}" if leaf else "",
            depth=path.count(".") + 1 if path else 0,
            kernel=None,
            calls=0,
            inputs=(),
            outputs=(),
            parameters=sums[path][0],
            own_parameters=sums[path][0] if leaf else 0,
            trainable=sums[path][0],
            buffers=0,
            bytes=sums[path][1],
            macs=0,
            own_macs=0,
            backward_macs=0,
            tied=() if tied == path else (tied,),
        )


def _preorder(paths: Mapping[str, Any]) -> Iterator[str]:
    """Parents before children, siblings in the order of the file."""
    below: dict[str, list[str]] = {}
    for path in paths:
        if path:
            below.setdefault(path.rpartition(".")[0], []).append(path)
    stack = [""]
    while stack:
        path = stack.pop()
        yield path
        stack.extend(reversed(below.get(path, [])))


def _safetensors(path: Path) -> Iterator[_Entry]:
    """The header alone: eight bytes of length, then JSON (github.com/huggingface/safetensors)."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
        for name, info in header.items():
            if name != "__metadata__":
                begin, end = info["data_offsets"]
                dtype = _SAFETENSORS_NAMES.get(info["dtype"], info["dtype"])
                yield _Entry(name, tuple(info["shape"]), dtype, end - begin, name)
    except (ValueError, KeyError, TypeError, struct.error, AttributeError) as error:
        raise PtoolsError(f"{path} is not a safetensors file: {error}", exit_code=2) from error


def _torch_file(path: Path) -> Iterator[_Entry]:
    for name, tensor in _tensors(_loaded(path)).items():
        size = tensor.numel() * tensor.element_size()
        where = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape))
        dtype = str(tensor.dtype).removeprefix("torch.")
        yield _Entry(name, tuple(tensor.shape), dtype, size, where)


def _loaded(path: Path) -> Any:
    """`weights_only`, onto meta: no code runs and no weights are read."""
    import pickle
    import zipfile

    import torch

    with path.open("rb") as file:
        is_pickle = file.read(1) == b"\x80"
    is_zip = zipfile.is_zipfile(path)
    unreadable = UsageError(f"{path} is not a checkpoint that torch can read")
    if not is_zip and not is_pickle:
        raise unreadable
    try:
        if is_zip:
            return torch.load(path, map_location="meta", weights_only=True, mmap=True)
        return torch.load(path, map_location="cpu", weights_only=True)  # before 1.6: no mmap
    except pickle.UnpicklingError as error:
        raise PtoolsError(
            f"{path} could only be read by executing the pickle in it, and ptools never does",
            hint="save model.state_dict() instead of the model, and summarise that file",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise unreadable from error


def _tensors(loaded: Any) -> dict[str, Any]:
    """The state_dict in what was loaded, under the usual names or the only one there is."""
    import torch

    if isinstance(loaded, torch.Tensor):
        return {"tensor": loaded}
    if not isinstance(loaded, Mapping):
        raise UsageError(f"the file holds a {type(loaded).__name__}, not a state_dict")
    found = {str(k): v for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    if found:
        return found
    for key in (*_NESTED, *loaded):
        if isinstance(inner := loaded.get(key), Mapping):
            found = {str(k): v for k, v in inner.items() if isinstance(v, torch.Tensor)}
            if found:
                return found
    return {}
