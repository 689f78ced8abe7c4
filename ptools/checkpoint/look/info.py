"""What is in a checkpoint, what is wrong with it, and what `fix_ckpt` would do about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ptools.checkpoint.checkpoint import Checkpoint
from ptools.checkpoint.containers import choose_weights, find_weights
from ptools.checkpoint.data.content import FileRange
from ptools.checkpoint.fixing import THE_PICKLE, Wishes, fix
from ptools.checkpoint.formats import open_checkpoint
from ptools.checkpoint.look.entries import Entry, TreeReader, seen_bytes
from ptools.checkpoint.look.sharing import Shared, Slack, shared_in, slack_in
from ptools.checkpoint.names.wrappers import unwrap
from ptools.checkpoint.output.destination import destination
from ptools.checkpoint.pickles.globals import globals_of, is_allowed, is_suspicious
from ptools.checkpoint.pickles.modules import Found, state_dicts
from ptools.checkpoint.pickles.nodes import Node, Storage, storages
from ptools.checkpoint.pickles.plain import Change
from ptools.checkpoint.pickles.tensors import Tensor
from ptools.checkpoint.report import Renaming, counted_moves
from ptools.errors import PtoolsError

_LOADED = ("torch zip", "legacy torch")  # by torch.load
_LATEST_PROTOCOL = 3  # of pickle that weights_only=True reads


@dataclass(frozen=True)
class Amount:
    """How many, and their bytes."""

    count: int
    bytes: int


@dataclass(frozen=True)
class Container:
    """A dict of weights, where `keys` lead; `wrappers` counts the names each removal changes."""

    keys: tuple[str, ...]
    tensors: Amount
    taken: bool
    wrappers: dict[str, int]


@dataclass(frozen=True)
class Imported:
    """A class or function that unpickling imports, and where it is first named."""

    path: str
    where: str
    rule: Literal["allowed", "refused", "runs code"]


@dataclass(frozen=True)
class Remedy:
    """What `fix_ckpt` would do without options; `refusal` is why it cannot."""

    renamed: tuple[Renaming, ...] = ()
    left_out: tuple[str, ...] = ()
    locations: dict[tuple[str, str], int] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    modules: tuple[str, ...] = ()
    format: str = ""
    refusal: str = ""


@dataclass(frozen=True)
class CheckpointInfo:
    """What `describe` finds. Sizes are in bytes.

    `tensors` counts names and the bytes of
    storages; `locations` counts storages, `dtypes` tensors. `weights_only` and `mmap` tell
    whether `torch.load` reads the file so; None: torch.load does not read it in any way.
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    bytes: int
    root: Entry
    tensors: Amount
    containers: tuple[Container, ...]
    shared: tuple[Shared, ...]
    slack: tuple[Slack, ...]
    locations: dict[str, Amount]
    dtypes: dict[str, Amount]
    globals: tuple[Imported, ...]
    weights_only: bool | None
    mmap: bool | None
    remedy: Remedy
    notes: tuple[str, ...]

    @property
    def loads_anywhere(self) -> bool:
        """Whether there is nothing to fix."""
        return self.remedy == Remedy()

    @property
    def runs_code(self) -> tuple[Imported, ...]:
        """The known ways to run code that loading the file would take."""
        return tuple(found for found in self.globals if found.rule == "runs code")

    def to_dict(self) -> dict[str, Any]:
        """The facts as JSON takes them."""
        facts = asdict(self)
        facts["remedy"]["locations"] = counted_moves(self.remedy.locations)
        return facts | {
            "path": str(self.path),
            "files": [str(file) for file in self.files],
            "loads_anywhere": self.loads_anywhere,
        }


def describe(path: str | Path) -> CheckpointInfo:
    """What is in a checkpoint of any format; its weights are not read, nothing in it is executed.

    Raises:
        NotACheckpoint, CorruptCheckpoint, UsageError: as `open_checkpoint` does.

        describe("last.ckpt").dtypes  # {"float32": Amount(count=62, bytes=46758816)}
    """
    checkpoint = open_checkpoint(Path(path))
    is_pickled = "safetensors" not in checkpoint.format
    imported = _imported(checkpoint.root) if is_pickled else ()
    checkpoint.root, modules = state_dicts(checkpoint.root)
    reader = TreeReader(modules)
    root = reader.entry(checkpoint.root)
    tensors = [tensor for _, tensor in reader.named]
    found = storages(checkpoint.root)
    info = CheckpointInfo(
        checkpoint.path,
        checkpoint.format,
        checkpoint.files,
        checkpoint.nbytes,
        root,
        Amount(len(tensors), sum(storage.nbytes for storage in found)),
        _containers(checkpoint.root),
        shared_in(reader.named),
        slack_in(reader.named),
        _by_location(found),
        _by_dtype(tensors),
        imported,
        _plain_pickle(checkpoint),
        _is_mapped(checkpoint, found),
        Remedy(),
        (),
    )
    remedy, notes = _remedy(checkpoint, modules)  # last, for this changes the tree
    objects = [change for change in remedy.changes if change.where != THE_PICKLE]
    plain = info.weights_only and not (objects or remedy.modules)
    return replace(info, weights_only=plain, remedy=remedy, notes=notes)


def _imported(root: Node) -> tuple[Imported, ...]:
    found = []
    for path, place in globals_of(root).items():
        rule: Literal["allowed", "refused", "runs code"] = "refused"
        if is_suspicious(path):
            rule = "runs code"
        elif is_allowed(path):
            rule = "allowed"
        found.append(Imported(path, place, rule))
    return tuple(found)


def _containers(root: Node) -> tuple[Container, ...]:
    found = find_weights(root)
    taken = choose_weights(found, ema=False) if found else None
    described = []
    for weights in found:
        tensors = weights.tensors()
        sizes = {id(t.storage): t.storage.nbytes for t in tensors.values() if t.storage}
        amount = Amount(len(tensors), sum(sizes.values()))
        wrappers = unwrap(tensors).counts
        described.append(Container(weights.keys, amount, weights is taken, wrappers))
    return tuple(described)


def _by_location(storages: Iterable[Storage]) -> dict[str, Amount]:
    sizes: dict[str, list[int]] = defaultdict(list)
    for storage in storages:
        sizes[storage.location].append(storage.nbytes)
    return {location: Amount(len(found), sum(found)) for location, found in sizes.items()}


def _by_dtype(tensors: Iterable[Tensor]) -> dict[str, Amount]:
    sizes: dict[str, list[int]] = defaultdict(list)
    for tensor in tensors:
        sizes[tensor.dtype or tensor.layout].append(seen_bytes(tensor))
    return {dtype: Amount(len(found), sum(found)) for dtype, found in sizes.items()}


def _plain_pickle(checkpoint: Checkpoint) -> bool | None:
    """Whether weights_only=True knows the opcodes; None if torch.load does not read the format."""
    if checkpoint.format == "TorchScript":
        return False
    if checkpoint.format not in _LOADED:
        return None
    with checkpoint.path.open("rb") as file:
        head = checkpoint.pickle or file.read(2)
    return head[1] <= _LATEST_PROTOCOL


def _is_mapped(checkpoint: Checkpoint, storages: Iterable[Storage]) -> bool | None:
    if checkpoint.format not in _LOADED:
        return None
    return checkpoint.format == "torch zip" and all(
        isinstance(storage.content, FileRange) for storage in storages
    )


def _remedy(checkpoint: Checkpoint, modules: Sequence[Found]) -> tuple[Remedy, tuple[str, ...]]:
    """What `fix_ckpt` would do, and what there is to say about it."""
    names = tuple(found.label for found in modules)
    notes = [note for found in modules for note in found.notes]
    try:
        fixed = fix(checkpoint, Wishes())
    except PtoolsError as error:
        return Remedy(modules=names, refusal=error.message), (*checkpoint.notes, *notes)
    written = destination(checkpoint, None, "cpu", False, None, inplace=False).format
    remedy = Remedy(
        tuple(Renaming(old, new, count) for (old, new), count in fixed.renamed.items()),
        tuple(fixed.left_out),
        dict(fixed.locations),
        tuple(fixed.changes),
        names,
        "" if written == checkpoint.format else written,
    )
    return remedy, (*fixed.notes, *notes)
