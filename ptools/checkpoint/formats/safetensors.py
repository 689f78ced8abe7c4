"""safetensors files: a JSON header that gives each tensor a dtype, a shape and a range of bytes.

What makes a file unsound is what safetensors' own reader refuses (safetensors/src/tensor.rs).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.checkpoint.data.content import FileRange, read_at
from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.pickles.nodes import Call
from ptools.checkpoint.pickles.tensors import new_tensor, ordered_dict, tensor_of, view
from ptools.files import human_bytes

LARGEST_HEADER = 100_000_000  # bytes, as in safetensors
ALIASES, ORDER = "ptools.aliases", "ptools.order"  # in a header's metadata, each as JSON
DTYPES = {  # safetensors' dtype -> torch's; shapes count single F4, of which torch packs two
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
_MOST_DIMENSIONS = 64  # as in torch
_AGAIN = "download or copy it again"


class _Entry(NamedTuple):
    """One tensor of the header; the bytes are counted from the header's end."""

    name: str
    dtype: str
    shape: list[int]
    begin: int
    end: int


def read_safetensors(path: Path) -> Checkpoint:
    """The tensors of a file as an ordered dict, in the order of its header.

    Names that its metadata calls aliases of a stored tensor share that tensor's storage.

    Raises:
        CorruptCheckpoint: the file is cut short, or its header does not describe it byte by byte.
    """
    header, start = _header(path)
    metadata = _metadata(path, header.pop("__metadata__", None))
    entries = [_entry(path, name, value) for name, value in header.items()]
    _check_ranges(path, entries, start)
    tensors: dict[str, Call] = {}
    for name, dtype, shape, begin, end in entries:
        content = FileRange(path, start + begin, end - begin)
        tensors[name] = new_tensor(name, content, DTYPES[dtype], shape)
    aliases = _aliases(path, metadata, tensors)
    for alias, name in aliases.items():
        tensors[alias] = _shared(tensors[name])
    order = _order(path, metadata, tensors)
    root = ordered_dict([(name, tensors[name]) for name in order])
    notes = [] if ALIASES in metadata else _notes(aliases)
    return Checkpoint(path, "safetensors", root, (path,), notes=notes)


def parse_object(path: Path, data: bytes | str) -> dict[str, Any]:
    """A JSON object, in which no name may be given twice.

    Raises:
        CorruptCheckpoint: it is none.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
        parsed = json.loads(text, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path}: bad JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CorruptCheckpoint(f"{path}: bad JSON: it is no object")
    return parsed


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{twice!r} is there twice")
    for name in found:
        name.encode()  # half a surrogate pair is no name
    return found


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where it ends."""
    size = path.stat().st_size
    nbytes = int.from_bytes(read_at(path, 0, 8), "little")
    if nbytes > LARGEST_HEADER:
        raise CorruptCheckpoint(f"{path}: a header of {human_bytes(nbytes)} should be small")
    if 8 + nbytes > size:
        raise CorruptCheckpoint(f"{path} is cut short, within its header", hint=_AGAIN)
    return parse_object(path, read_at(path, 8, nbytes)), 8 + nbytes


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    raise CorruptCheckpoint(f"{path}: its metadata is not a dict of texts")


def _entry(path: Path, name: str, value: Any) -> _Entry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            numbers = [*shape, begin, end]
        case _:
            raise CorruptCheckpoint(f"{path}: {name} lacks dtype, shape or data_offsets")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise CorruptCheckpoint(f"{path}: {name} has a size or offset that is none")
    if len(shape) > _MOST_DIMENSIONS:
        raise CorruptCheckpoint(f"{path}: {name} has {len(shape)} dimensions, too many")
    if dtype not in DTYPES:
        raise CorruptCheckpoint(f"{path}: {name} is of dtype {dtype}, which torch does not have")
    if dtype == "F4":
        if not shape or shape[-1] % 2:
            raise CorruptCheckpoint(f"{path}: {name} has half a byte, the last dimension is odd")
        shape = [*shape[:-1], shape[-1] // 2]
    return _Entry(name, dtype, shape, begin, end)


def _check_ranges(path: Path, entries: list[_Entry], start: int) -> None:
    """The tensors must fill the file: no gap, no overlap, nothing behind them."""
    at = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != at:
            wrong = "overlaps the one before" if entry.begin < at else "leaves a gap before it"
            raise CorruptCheckpoint(f"{path}: {entry.name} {wrong}")
        at = entry.end
    excess = path.stat().st_size - start - at
    if excess < 0:
        raise CorruptCheckpoint(
            f"{path} is cut short: {-excess:,} bytes of {start + at:,} are missing", hint=_AGAIN
        )
    if excess:
        raise CorruptCheckpoint(f"{path} has {excess:,} bytes more than its header describes")


def _aliases(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Call]
) -> dict[str, str]:
    """Names without a tensor of their own, and the stored ones whose tensors they share.

    Ours are under one key of the metadata; `safetensors.torch.save_model` has a key for each.
    """
    if ALIASES not in metadata:
        return {
            alias: name
            for alias, name in metadata.items()
            if alias not in tensors and alias != "format" and name in tensors
        }
    aliases = parse_object(path, metadata[ALIASES])
    for alias, name in aliases.items():
        if not isinstance(name, str) or name not in tensors or alias in tensors:
            raise CorruptCheckpoint(f"{path}: {alias} is said to share {name}, but cannot")
    return aliases


def _order(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Call]) -> list[str]:
    """All names, those first that the metadata lists."""
    try:
        listed = json.loads(metadata.get(ORDER, "[]"))
        rank = {name: index for index, name in enumerate(listed)}
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path}: bad JSON in {ORDER}: {error}") from error
    return sorted(tensors, key=lambda name: rank.get(name, math.inf))


def _shared(stored: Call) -> Call:
    tensor = tensor_of(stored)
    assert tensor is not None and tensor.storage is not None  # new_tensor made it
    return view(tensor.storage, tensor.dtype, tensor.offset, tensor.shape, tensor.stride)


def _notes(aliases: Mapping[str, str]) -> list[str]:
    """What another program's metadata does not tell for sure: they may have been views."""
    shown = ", ".join(f"{alias} = {name}" for alias, name in list(aliases.items())[:3])
    more = ", ..." if len(aliases) > 3 else ""
    return [f"taken to be the same tensor, as the metadata says: {shown}{more}"] if aliases else []
