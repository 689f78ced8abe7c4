"""The kinds of checkpoints that are read, told apart by what is in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.errors import PtoolsError, UsageError

_PREFERRED = (  # in a folder with several, as transformers' from_pretrained does
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SUFFIXES = re.compile(r"\.(pth?(\.tar)?|ckpt|safetensors|index\.json)$")
_LOOSE_SUFFIXES = re.compile(r"\.(bin|tar|model)$")  # other programs' too: the content decides
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # 0x1950a86a20f9469cfc6c, torch's magic number
_MOST_SHOWN = 10


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of any kind, a file or a folder, without its weights.

    Its content tells the kind, not its name. A folder stands for the one checkpoint in it; where
    Hugging Face's names leave no doubt, others may lie beside it.

    Raises:
        NotACheckpoint: it is something else.
        CorruptCheckpoint: it is damaged, cut short, or does not add up.
        UsageError: the folder holds several checkpoints, which are listed, or none.

        open_checkpoint(Path("model.pth")).format  # "torch zip"
    """
    from ptools.checkpoint.formats.looks_like import unreadable
    from ptools.checkpoint.output.journal import refuse_interrupted

    try:
        refuse_interrupted(path)
        return _read_folder(path) if path.is_dir() else _read_any(path)
    except OSError as error:
        raise unreadable(path, error) from error


def find_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints right in a folder, by name; of one in shards, its index alone."""
    from ptools.checkpoint.formats.sharded import read_weight_map

    found = [path for path in sorted(folder.iterdir()) if _is_candidate(path)]
    shards: set[Path] = set()
    for index in found:
        if index.name.endswith(".index.json"):
            try:
                shards |= {folder / shard for shard in read_weight_map(index).values()}
            except PtoolsError:
                continue  # opening it says what is wrong
    return [path for path in found if path not in shards]


def read_file(path: Path) -> Checkpoint:
    """Read a checkpoint that is one file, whole in itself.

    Raises:
        NotACheckpoint: it is something else.
        CorruptCheckpoint: it is damaged, cut short, or does not add up.
    """
    from ptools.checkpoint.formats.looks_like import refusal

    match _kind(path):
        case "zip":
            return _read_zip(path)
        case "legacy":
            from ptools.checkpoint.formats.legacy import read_legacy

            return read_legacy(path)
        case "safetensors":
            from ptools.checkpoint.formats.safetensors import read_safetensors

            return read_safetensors(path)
    raise refusal(path)


def _kind(path: Path) -> str:
    """What the first bytes of a file tell."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PK\3\4"):
        return "zip"
    if head.startswith(b"\x80") and _LEGACY in head[:32]:
        return "legacy"
    if head[5:9] == b"\0\0\0{":  # a header of less than a terabyte: text has no zeros
        return "safetensors"
    if head.lstrip().startswith(b"{") and _names_shards(path, head):
        return "index"
    return ""


def _names_shards(path: Path, head: bytes) -> bool:
    return path.name.endswith(".index.json") or b'"weight_map"' in head


def _read_any(path: Path) -> Checkpoint:
    if _kind(path) != "index":
        return read_file(path)
    from ptools.checkpoint.formats.sharded import read_index

    return read_index(path)


def _read_zip(path: Path) -> Checkpoint:
    from ptools.checkpoint.formats.looks_like import member_names, refusal

    # Torch puts all records into one folder.
    members = {name.partition("/")[2] for name in member_names(path)}
    if "data.pkl" not in members:
        raise refusal(path)
    if "constants.pkl" in members and any(name.startswith("code/") for name in members):
        from ptools.checkpoint.formats.torchscript import read_torchscript

        return read_torchscript(path)
    from ptools.checkpoint.formats.torch_zip import read_torch_zip

    return read_torch_zip(path)


def _read_folder(folder: Path) -> Checkpoint:
    from ptools.checkpoint.formats.looks_like import refusal

    found = find_checkpoints(folder)
    chosen = next((folder / name for name in _PREFERRED if folder / name in found), None)
    if chosen is None and _is_distributed(folder):
        return _read_distributed(folder)
    lightning = folder / "checkpoints"
    if not found and lightning.is_dir():
        found = find_checkpoints(lightning)
    if not found:
        raise refusal(folder)
    chosen = chosen or _only(folder, found)
    checkpoint = open_checkpoint(chosen)
    others = [path.name for path in found if path != chosen]
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        checkpoint.notes.append(f"{chosen.name} is read, not {shown} beside it")
    return checkpoint


def _read_distributed(folder: Path) -> Checkpoint:
    if _is_dcp(folder):
        from ptools.checkpoint.formats.dcp import read_dcp

        return read_dcp(folder)
    from ptools.checkpoint.formats.deepspeed import read_deepspeed

    return read_deepspeed(folder)


def _only(folder: Path, found: Sequence[Path]) -> Path:
    if len(found) == 1:
        return found[0]
    commands = [f"  ptools fix-ckpt {shlex.quote(str(path))}" for path in found[:_MOST_SHOWN]]
    more = [f"  ... and {len(found) - _MOST_SHOWN} more"] if len(found) > _MOST_SHOWN else []
    hint = "choose one:\n" + "\n".join(commands + more)
    raise UsageError(f"{folder} holds {len(found)} checkpoints", hint)


def _is_candidate(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return _is_distributed(path)
    if _SUFFIXES.search(path.name) or path.name in _PREFERRED:
        return True
    return bool(_LOOSE_SUFFIXES.search(path.name)) and _kind(path) != ""


def _is_distributed(folder: Path) -> bool:
    return _is_dcp(folder) or _is_deepspeed(folder)


def _is_dcp(folder: Path) -> bool:
    return (folder / ".metadata").is_file()


def _is_deepspeed(folder: Path) -> bool:
    """Whether a folder is one of DeepSpeed's, or names with `latest` the one below it that is."""
    states = "*mp_rank_*_states.pt"
    if any(folder.glob(states)):
        return True
    return (folder / "latest").is_file() and any(folder.glob(f"*/{states}"))
