"""What torch.save has written since 1.6: a zip archive with `data.pkl` and a record a storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.checkpoint.data.archive import read_archive, whole
from ptools.checkpoint.data.content import Content
from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
from ptools.checkpoint.pickles.nodes import Global, Node, Storage, Tuple
from ptools.checkpoint.pickles.tensors import STORAGES
from ptools.checkpoint.pickles.unpickle import unpickle

LARGEST_PICKLE = 1 << 30


def read_torch_zip(path: Path) -> Checkpoint:
    """Raises CorruptCheckpoint or NotACheckpoint."""
    records = read_archive(path)
    if "data.pkl" not in records:
        raise NotACheckpoint(f"{path} is a zip archive, but no checkpoint: it has no data.pkl")
    root, pickle = read_records(records)
    return Checkpoint(path, "torch zip", root, (path,), pickle)


def read_records(records: Mapping[str, Content]) -> tuple[Node, bytes]:
    """The tree of an archive's `data.pkl` and that pickle itself."""
    order = whole(records["byteorder"], 16) if "byteorder" in records else b"little"
    if order != b"little":
        raise NotACheckpoint("the checkpoint was written on a big-endian machine")
    pickle = whole(records["data.pkl"], LARGEST_PICKLE)
    return unpickle(pickle, storage_reader(lambda key: records.get(f"data/{key}"))), pickle


def storage_reader(content_of: Callable[[str], Content | None]) -> Callable[[Node], Storage]:
    """What turns torch's persistent ids into storages, each key into one."""
    known: dict[str, Storage] = {}

    def read(identifier: Node) -> Storage:
        match identifier:
            case Tuple(
                [tag, Global() as kind, str() as key, str() as location, int() as numel, *_]
            ):
                pass
            case _:
                raise CorruptCheckpoint("the pickle refers to something that is no storage")
        if tag != "storage" or kind.name not in STORAGES or numel < 0:
            raise CorruptCheckpoint(f"the pickle names an unknown storage, {kind.path} {key}")
        storage = known.get(key)
        if storage is None:
            content = content_of(key)
            if content is None:
                raise CorruptCheckpoint(f"storage {key} is missing")
            storage = Storage(kind.name, key, location, numel, STORAGES[kind.name][1], content)
            if content.nbytes != storage.nbytes:
                says = f"{storage.nbytes} bytes in the pickle, {content.nbytes} in the file"
                raise CorruptCheckpoint(f"storage {key} has two sizes: {says}")
            known[key] = storage
        elif (storage.kind, storage.numel) != (kind.name, numel):
            raise CorruptCheckpoint(f"storage {key} is used as two kinds")
        return storage

    return read
