"""Write named tensors as a safetensors file, streaming them from where they lie.

The format: github.com/huggingface/safetensors. It has no way to share memory, so a tensor that is
another one under a second name is stored once, and the second name is told in the metadata as
`safetensors.torch.save_model` does: `{"lm_head.weight": "embed.weight"}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ptools.checkpoint.data.casting import contiguous
from ptools.checkpoint.data.content import Content, Literal
from ptools.checkpoint.formats.safetensors import ALIASES, DTYPES, ORDER, read_safetensors
from ptools.checkpoint.output.writing import Plan
from ptools.checkpoint.pickles.tensors import ITEMSIZES, Tensor, named_tensors
from ptools.errors import PtoolsError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def plan_safetensors(tensors: Mapping[str, Tensor]) -> Plan:
    """Where each tensor goes in a safetensors file.

    Raises:
        PtoolsError: a tensor is of a kind that the format does not know.
    """
    aliases = aliases_in(tensors)
    stored = {name: tensor for name, tensor in tensors.items() if name not in aliases}
    for name, tensor in stored.items():
        if tensor.storage is None or tensor.layout != "strided" or tensor.dtype not in _NAMES:
            kind = tensor.dtype if tensor.layout == "strided" else tensor.layout
            raise PtoolsError(
                f"safetensors cannot hold {name}: it is {kind}",
                hint=f"leave it out with --drop '{name}', or write a torch file",
            )
    # Wide elements first: then each tensor starts at a multiple of its element's size.
    order = sorted(stored, key=lambda name: -ITEMSIZES[stored[name].dtype])
    places, at = {}, 0
    for name in order:
        places[name] = (at, at + stored[name].nbytes)
        at += stored[name].nbytes
    header = _header(list(tensors), stored, places, aliases)
    placed: list[tuple[int, Content]] = [(0, Literal(header))]
    placed += [(len(header) + places[name][0], contiguous(stored[name])) for name in order]

    def check(path: Path) -> bool:
        found = named_tensors(read_safetensors(path).root)
        return {name: (t.dtype, t.shape) for name, t in found.items()} == {
            name: (t.dtype, t.shape) for name, t in tensors.items()
        }

    return Plan(tuple(placed), len(header) + at, check=check)


def _header(
    names: Sequence[str],
    stored: Mapping[str, Tensor],
    places: Mapping[str, tuple[int, int]],
    aliases: Mapping[str, str],
) -> bytes:
    metadata = {"format": "pt", **aliases}
    if aliases:  # ours tell ties from other sharing, and the order of all names
        metadata |= {ALIASES: json.dumps(aliases), ORDER: json.dumps(names)}
    entries: dict[str, object] = {"__metadata__": metadata}
    for name, tensor in stored.items():
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": list(places[name]),
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def aliases_in(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names that stand for the very memory of an earlier one, and that one."""
    first: dict[object, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if tensor.storage is not None and tensor.numel:
            memory = (id(tensor.storage), tensor.offset, tensor.shape, tensor.stride, tensor.dtype)
            if (owner := first.setdefault(memory, name)) != name:
                aliases[name] = owner
    return aliases
