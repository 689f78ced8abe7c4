"""Change a tree: names, locations, dtypes, and how much of a storage its tensors drag along."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from ptools.checkpoint.data.casting import FLOATS, SHORT, Cast
from ptools.checkpoint.data.content import part_of
from ptools.checkpoint.names.wrappers import rename_prefixes
from ptools.checkpoint.pickles.nodes import (
    Call,
    Dict,
    Global,
    List,
    Node,
    Storage,
    children,
    mapping,
    storages,
    walk,
)
from ptools.checkpoint.pickles.tensors import (
    ITEMSIZES,
    KINDS,
    STORAGES,
    Tensor,
    tensor_of,
    tensors_below,
)
from ptools.errors import PtoolsError, UsageError

_LOCATION = re.compile(r"cpu|meta|(cuda|mps|xpu|hpu|npu|xla|mtia|privateuseone)(:\d+)?")


def rename(node: Dict | Call, names: Mapping[str, str | None]) -> None:
    """Give the entries of a state_dict new names (None: leave it out), and its `_metadata` too.

    Raises:
        PtoolsError: two entries would have one name.
    """
    kept = [(names.get(key, key), value) for key, value in node.pairs if isinstance(key, str)]
    taken = Counter(name for name, _ in kept if name is not None)
    if twice := [name for name, count in taken.items() if count > 1]:
        old = [key for key, new in names.items() if new == twice[0]]
        more = len(twice) - 1
        others = f" (and {more} more such name{'s' if more > 1 else ''})" if more else ""
        raise PtoolsError(
            f"several tensors would be called {twice[0]!r}{others}",
            hint=f"it would be made of {' and '.join(old[:3])}: rename or --drop all but one",
        )
    changed = {key: name for key, name in names.items() if name != key}
    if not changed:
        return
    node.pairs[:] = [
        (changed.get(key, key) if isinstance(key, str) else key, value)
        for key, value in node.pairs
        if not (isinstance(key, str) and changed.get(key, key) is None)
    ]
    if (metadata := metadata_of(node)) is not None:
        _rename_metadata(metadata, names)


def metadata_of(node: Dict | Call) -> list[tuple[Node, Node]] | None:
    """The pairs of a state_dict's `_metadata`, which is an attribute of its OrderedDict."""
    for state in node.states if isinstance(node, Call) else ():
        for key, value in mapping(state) or ():
            if key == "_metadata":
                return mapping(value)
    return None


def _rename_metadata(pairs: list[tuple[Node, Node]], names: Mapping[str, str | None]) -> None:
    prefixes = rename_prefixes([key for key, _ in pairs if isinstance(key, str)], names)
    pairs[:] = [
        (prefixes[key] if isinstance(key, str) else key, value)
        for key, value in pairs
        if not isinstance(key, str) or prefixes[key] is not None
    ]


def rename_in_optimizer(root: Node, names: Mapping[str, str | None]) -> None:
    """Rename where an optimizer's state goes by parameter names, as FSDP's does."""
    new_names = {old: old if new is None else new for old, new in names.items()}
    for key, value in mapping(root) or ():
        if isinstance(key, str) and "optim" in key:
            for node in walk(value):
                _rename_all(node, new_names)


def _rename_all(node: Node, names: Mapping[str, str]) -> None:
    """Rename the keys of a dict or the elements of a list, if each of them is a tensor's name."""
    pairs = mapping(node)
    if pairs and all(isinstance(key, str) and key in names for key, _ in pairs):
        pairs[:] = [(names[key], value) for key, value in pairs]
    listed = node.elements if isinstance(node, List) else []
    if listed and all(isinstance(name, str) and name in names for name in listed):
        listed[:] = [names[name] for name in listed]


def move(root: Node, location: str) -> Counter[tuple[str, str]]:
    """Change where storages are to be loaded; how many went from where to where.

    To "meta", tensors keep shape, stride and dtype but no data.

    Raises:
        UsageError: torch knows no such place.
    """
    if not _LOCATION.fullmatch(location):
        raise UsageError(f"{location!r} is no place for tensors", hint="use cpu, cuda:0 or meta")
    moved: Counter[tuple[str, str]] = Counter()
    for storage in storages(root):
        if storage.location != location:
            moved[storage.location, location] += 1
            storage.location = location
    if location == "meta":
        for node in list(walk(root)):
            if isinstance(node, Call) and (tensor := tensor_of(node)) and tensor.storage:
                _make_meta(node, tensor)
    return moved


def _make_meta(node: Call, tensor: Tensor) -> None:
    if tensor.layout != "strided":
        raise PtoolsError(f"a {tensor.layout} tensor cannot be made meta", hint="use --to cpu")
    function = Global("torch._utils", "_rebuild_meta_tensor_no_storage")
    if node is tensor.call:
        node.function = function
    elif node.path.endswith("._rebuild_from_type_v2"):
        node.args.elements[0] = function
    else:
        return  # a Parameter: the tensor in it comes next
    _, _, size, stride, requires_grad, *_ = tensor.call.args.elements
    tensor.call.args.elements[:] = [Global("torch", tensor.dtype), size, stride, requires_grad]


def compact(root: Node) -> int:
    """Cut storages down to what their tensors see; the bytes saved."""
    seen: dict[int, list[Tensor]] = {}
    bare = {id(storage) for storage in _outside_tensors(root)}
    for tensor in tensors_below(root):
        if tensor.storage is not None and id(tensor.storage) not in bare:
            seen.setdefault(id(tensor.storage), []).append(tensor)
    return sum(_cut(tensors) for tensors in seen.values())


def _cut(tensors: Sequence[Tensor]) -> int:
    """Cut the storage that these tensors share."""
    storage = tensors[0].storage
    assert storage is not None
    full = [tensor for tensor in tensors if tensor.numel]
    unit = max(storage.itemsize, *(ITEMSIZES[tensor.dtype] for tensor in tensors))
    start = min((t.offset * ITEMSIZES[t.dtype] for t in full), default=0) // unit * unit
    end = max((t.reach * ITEMSIZES[t.dtype] for t in full), default=0)
    end = min(-(-end // unit) * unit, storage.nbytes)
    saved = storage.nbytes - (end - start)
    if saved:
        storage.content = part_of(storage.content, start, end - start)
        storage.numel = (end - start) // storage.itemsize
        for tensor in tensors:
            offset = tensor.offset - start // ITEMSIZES[tensor.dtype] if tensor.numel else 0
            tensor.call.args.elements[1] = offset
    return saved


def _outside_tensors(root: Node) -> Iterator[Storage]:
    """Storages that something else than a tensor's call holds: they are saved for themselves."""
    inside = {id(tensor.call.args) for tensor in tensors_below(root)}
    for node in walk(root):
        if id(node) not in inside:
            yield from (part for part in children(node) if isinstance(part, Storage))


def cast(roots: Iterable[Node], dtype: str) -> Counter[tuple[str, str]]:
    """Make floating-point tensors of another dtype; how many storages went from which to which.

    A storage is converted as a whole, so that what shares it goes on sharing it.

    Raises:
        UsageError: that is no floating-point dtype to store weights in.
    """
    dtype = SHORT.get(dtype, dtype).removeprefix("torch.")
    if dtype not in FLOATS:
        raise UsageError(
            f"{dtype!r} is no dtype to store weights in", hint=f"use {', '.join(FLOATS)}"
        )
    counts: Counter[tuple[str, str]] = Counter()
    changed: dict[int, Storage] = {}
    for tensor in chain.from_iterable(map(tensors_below, roots)):
        storage = tensor.storage
        if storage is None or tensor.layout != "strided" or storage.kind == "UntypedStorage":
            continue
        if tensor.dtype in FLOATS and tensor.dtype != dtype and id(storage) not in changed:
            counts[tensor.dtype, dtype] += 1
            changed[id(storage)] = storage
    for storage in changed.values():
        storage.content = Cast(storage.content, STORAGES[storage.kind][0], dtype)
        storage.kind, storage.itemsize = KINDS[dtype], ITEMSIZES[dtype]
    return counts
