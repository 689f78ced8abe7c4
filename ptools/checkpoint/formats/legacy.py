"""What torch.save wrote before 1.6: pickles in a row, and the storages behind them.

The layout is that of `_legacy_save` and `_legacy_load` in torch/serialization.py: magic number,
version, facts of the machine, the object, and the keys of its storages; then for each key an int64
with the number of elements and the elements, which are little-endian on any machine.
"""

from __future__ import annotations

import io
from pathlib import Path

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.checkpoint.data.content import FileRange, Literal, part_of, read_at
from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
from ptools.checkpoint.formats.torch_zip import LARGEST_PICKLE
from ptools.checkpoint.pickles.nodes import Call, Global, List, Node, Storage, Tuple, walk
from ptools.checkpoint.pickles.tensors import STORAGES
from ptools.checkpoint.pickles.unpickle import unpickle

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_HEADER = 8  # bytes before each storage


def read_legacy(path: Path) -> Checkpoint:
    """Read a file of torch's first format.

    Raises:
        CorruptCheckpoint: it is cut short, or does not add up.
        NotACheckpoint: it is a pickle of something else.
    """
    size = path.stat().st_size
    with path.open("rb", buffering=0) as raw:
        pickles = _Pickles(raw, min(size, LARGEST_PICKLE))
        if unpickle(pickles) != MAGIC_NUMBER:
            raise NotACheckpoint(
                f"{path} is a pickle, but not one that torch.save wrote",
                "load it with the program that made it, and torch.save its weights",
            )
        if unpickle(pickles) != _VERSION:
            raise NotACheckpoint(f"{path} is of a version of torch's old format that is unknown")
        unpickle(pickles)  # facts of the machine, on which nothing depends
        storages = _Storages()
        root = unpickle(pickles, storages.read)
        keys = unpickle(pickles)
        end = storages.place(path, keys, pickles.tell(), size)
    storages.rebase_tensors(root)
    _fill_ordered_dicts(root)
    checkpoint = Checkpoint(path, "legacy torch", root, (path,))
    if end < size:
        checkpoint.notes.append(
            f"{size - end} bytes follow the checkpoint; torch.load reads only the first one, too"
        )
    return checkpoint


class _Pickles(io.BufferedReader):
    """The front of a file; a length in there that lies is not believed."""

    def __init__(self, raw: io.FileIO, left: int) -> None:
        super().__init__(raw)
        self._left = left

    def read(self, size: int | None = -1) -> bytes:
        wanted = self._left + 1 if size is None or size < 0 else size
        if wanted > self._left:
            raise CorruptCheckpoint("the file ends within its pickle: it is cut short")
        self._left -= wanted
        return super().read(wanted)

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(self._left)
        self._left -= len(line)
        return line


class _Storages:
    """The storages a pickle names. Their bytes come after it, so they get their places last."""

    def __init__(self) -> None:
        self._roots: dict[str, Storage] = {}
        self._views: dict[str, tuple[Storage, Storage, int]] = {}  # with its root, and where in it

    def read(self, identifier: Node) -> Node:
        """What a persistent id stands for."""
        match identifier:
            case Tuple(["module", Global() as cls, *_]):  # the rest is the class's source
                return cls
            case Tuple(["storage", Global() as kind, str() as key, str() as at, int() as numel, v]):
                root = self._root(kind, key, at, numel)
                return root if v is None else self._view(root, v)
        raise CorruptCheckpoint("the pickle refers to something that is no storage")

    def _root(self, kind: Global, key: str, location: str, numel: int) -> Storage:
        if kind.name not in STORAGES or numel < 0:
            raise CorruptCheckpoint(f"the pickle names an unknown storage, {kind.path} {key}")
        storage = self._roots.get(key)
        if storage is None:
            itemsize = STORAGES[kind.name][1]
            storage = Storage(kind.name, key, location, numel, itemsize, Literal(b""))
            self._roots[key] = storage
        elif (storage.kind, storage.numel) != (kind.name, numel):
            raise CorruptCheckpoint(f"storage {key} is used as two kinds")
        return storage

    def _view(self, root: Storage, metadata: Node) -> Storage:
        """A part of a storage that was itself a storage, as in torch up to 0.4."""
        match metadata:
            case Tuple([str() as key, int() as at, int() as numel]) if min(at, numel) >= 0:
                pass
            case _:
                raise CorruptCheckpoint(f"a view of storage {root.key} does not add up")
        view, same_root, same_at = self._views.setdefault(
            key,
            (Storage(root.kind, key, root.location, numel, root.itemsize, Literal(b"")), root, at),
        )
        if at + numel > root.numel or (view.numel, same_root, same_at) != (numel, root, at):
            raise CorruptCheckpoint(f"view {key} of storage {root.key} does not add up")
        return view

    def place(self, path: Path, keys: Node, at: int, size: int) -> int:
        """Give the storages their places from `at` on; where the last one ends."""
        known = keys.elements if isinstance(keys, List) else []
        if len(known) != len(self._roots) or set(known) != self._roots.keys():
            raise CorruptCheckpoint(f"{path}: the list of storages is not that of the pickle")
        end = at + sum(_HEADER + storage.nbytes for storage in self._roots.values())
        if end > size:
            raise CorruptCheckpoint(f"{path} lacks its last {end - size} bytes: it is cut short")
        for key in known:
            storage = self._roots[key]
            _check_header(read_at(path, at, _HEADER), storage)
            storage.content = FileRange(path, at + _HEADER, storage.nbytes)
            at += _HEADER + storage.nbytes
        for view, root, start in self._views.values():
            view.content = part_of(root.content, start * root.itemsize, view.nbytes)
        return at

    def rebase_tensors(self, tree: Node) -> None:
        """Let tensors on views be on the whole storage, so that they share memory as they did."""
        views = {id(view): (root, at) for view, root, at in self._views.values()}
        for node in walk(tree) if views else ():
            match node:
                case Call(args=Tuple([Storage() as storage, int() as offset, *_])) if (
                    node.path.startswith("torch._utils._rebuild_") and id(storage) in views
                ):
                    root, at = views[id(storage)]
                    node.args.elements[:2] = [root, offset + at]


def _check_header(header: bytes, storage: Storage) -> None:
    numel = int.from_bytes(header, "little", signed=True)
    if numel != storage.numel:
        says = f"{storage.numel} elements in the pickle, {numel} in the file"
        raise CorruptCheckpoint(f"storage {storage.key} has two sizes: {says}")


def _fill_ordered_dicts(tree: Node) -> None:
    """Python 2 makes an OrderedDict of a list of pairs, Python 3 fills an empty one."""
    for node in walk(tree):
        match node:
            case Call(args=Tuple([List(items)])) if node.path == "collections.OrderedDict":
                pairs = [item.elements for item in items if isinstance(item, List | Tuple)]
                if len(pairs) == len(items) and all(len(pair) == 2 for pair in pairs):
                    node.args = Tuple([])
                    node.pairs = [(key, value) for key, value in pairs] + node.pairs
