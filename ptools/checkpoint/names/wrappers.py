"""Names that wrappers such as DistributedDataParallel leave in a checkpoint, found by structure."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

Renamed = Mapping[str, str | None]  # old name -> new name, None: left out

# Only wrappers' names: torch.compile, FSDP, checkpointing, Lightning Fabric, TorchRec, FairScale.
_PRIVATE = tuple(
    "_orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module _forward_module "
    "_dmp_wrapped_module _fpw_module".split()
)
# Names that a model may use as well: DataParallel and AveragedModel, Opacus.
_PLAIN = ("module", "_module")
_WRAPPERS = frozenset(_PRIVATE + _PLAIN)
_COUNTER = "n_averaged"  # AveragedModel's own buffer, beside its `module`
_SHOWN = 80  # characters of a name in a sentence


@dataclass(frozen=True)
class Unwrapped:
    """Names without their wrappers.

    `names` maps all names, in their order, to the new ones; None: left out (AveragedModel's own
    `n_averaged`). `counts` says how many names each removal changed, by pattern: `module.` at the
    front, `*._orig_mod.` further in. `left` tells what looks like a wrapper and stays, and why.
    """

    names: dict[str, str | None]
    counts: dict[str, int]
    left: tuple[str, ...]


def unwrap(names: Iterable[str]) -> Unwrapped:
    """Remove what is surely a wrapper's; two names never become one.

    Private names such as `_orig_mod` go wherever they are, unless the names under them are taken;
    `module` goes where it is all that its parent holds, for a wrapper has neither siblings nor
    tensors of its own. Further in that may be a model's own block, so there it must be the only
    one and not in a numbered block.

        unwrap(["module.fc.weight"]).names  # {"module.fc.weight": "fc.weight"}
    """
    nodes, leaves = _trie(names)
    repeated = _is_repeated(nodes)
    for node in reversed(nodes):  # children come before their parents
        if node.children:
            _absorb(node, repeated)
    renamed = {name: _name(leaf) for name, leaf in leaves.items()}
    counts = {removed: count for (removed, _), count in changes(renamed).items()}
    return Unwrapped(renamed, counts, tuple(_sentences(nodes)))


def bare(name: str) -> str:
    """The name without any element that could be a wrapper's, sure or not."""
    *path, last = name.split(".")
    return ".".join([*(element for element in path if element not in _WRAPPERS), last])


@dataclass(eq=False, slots=True)
class _Node:
    element: str
    parent: "_Node | None" = None
    children: dict[str, "_Node"] = field(default_factory=dict)
    tensor: bool = False
    removed: bool = False
    numbered: bool = False  # somewhere on the way here is an index, as in layers.0
    place: int = 0  # equal for nodes whose paths differ in wrappers only; the root's is 0

    @property
    def is_module(self) -> bool:
        return bool(self.children) and not self.tensor


def _trie(names: Iterable[str]) -> tuple[list[_Node], dict[str, _Node]]:
    """All nodes, parents first, and the node of each name."""
    nodes, leaves = [_Node("")], {}
    for name in names:
        node = nodes[0]
        for element in name.split("."):
            child = node.children.get(element)
            if child is None:
                numbered = node.numbered or element.isdecimal()
                child = node.children[element] = _Node(element, node, numbered=numbered)
                nodes.append(child)
            node = child
        node.tensor = True
        leaves[name] = node
    return nodes, leaves


def _is_repeated(nodes: list[_Node]) -> bool:
    """Whether several parts of the model hold a `module`: then it is more likely the model's own.

    Also gives each node its `place`.
    """
    places: dict[tuple[int, str], int] = {}
    holders, averaged = set(), {0}
    for node in nodes[1:]:
        above = node.parent.place if node.parent else 0
        if node.children and node.element in _WRAPPERS:
            node.place = above
        else:
            node.place = places.setdefault((above, node.element), len(places) + 1)
        if node.children and node.element in _PLAIN:
            holders.add(above)
        elif node.element == _COUNTER:
            averaged.add(above)
    return len(holders - averaged) > 1


def _absorb(node: _Node, repeated: bool) -> None:
    while any(_merge(node, name) for name in _PRIVATE):
        pass  # one that is gone may make room for another
    for name in _PLAIN:
        sure = node.place == 0 or not (node.numbered or repeated)
        if _is_averaged(node, name):
            node.children.pop(_COUNTER).removed = True
            sure = True
        if sure and len(node.children) == 1 and not node.tensor:
            _merge(node, name)


def _is_averaged(node: _Node, name: str) -> bool:
    if node.tensor or node.children.keys() != {name, _COUNTER}:
        return False
    return node.children[name].is_module and not node.children[_COUNTER].children


def _merge(parent: _Node, name: str) -> bool:
    """Put the children of this child in its place, if it is a module and their names are free."""
    wrapper = parent.children.get(name)
    if wrapper is None or not wrapper.is_module or _taken(parent, wrapper):
        return False
    del parent.children[name]
    parent.children.update(wrapper.children)
    wrapper.removed = True
    return True


def _taken(parent: _Node, wrapper: _Node) -> bool:
    """Whether a name is both beside the wrapper and in it."""
    return any(parent.children.get(name, wrapper) is not wrapper for name in wrapper.children)


def _name(leaf: _Node) -> str | None:
    return None if leaf.removed else ".".join(reversed([node.element for node in _upwards(leaf)]))


def _upwards(node: _Node) -> Iterator[_Node]:
    """The elements that remain, from this one up to the root, which is left out."""
    while node.parent is not None:
        if not node.removed:
            yield node
        node = node.parent


def _sentences(nodes: list[_Node]) -> Iterator[str]:
    stuck: list[_Node] = []
    doubtful: list[_Node] = []
    for node in nodes:
        if node.removed or not node.children or node.element not in _WRAPPERS:
            continue
        parent = next((above for above in _upwards(node) if above is not node), nodes[0])
        if node.element in _PRIVATE or (parent is nodes[0] and _taken(parent, node)):
            stuck.append(node)
        elif len(parent.children) == 1 and not parent.tensor:
            doubtful.append(node)
    if stuck:
        yield f"{_shown(stuck)} stays: without it, two tensors would have the same name"
    if doubtful:
        yield (
            f"{_shown(doubtful)} stays: it may be a wrapper's or the model's own; "
            f"--rename '\\.{doubtful[0].element}\\.=.' removes it, --model decides"
        )


def _shown(nodes: list[_Node]) -> str:
    path = f"{_name(nodes[0])}."
    shown = repr(path if len(path) <= _SHOWN else f"{path[:_SHOWN]}...")
    return shown if len(nodes) == 1 else f"{shown} (and {len(nodes) - 1} more like it)"


def changes(names: Renamed) -> Counter[tuple[str, str]]:
    """How many names each change touches: what was removed, what came in its place ("": nothing).

    Both are patterns: `module.` is at the front of a name, `*.module.` further in.
    """
    found: Counter[tuple[str, str]] = Counter()
    for old, new in names.items():
        if new is None or new == old:
            continue
        before, after = old.split("."), new.split(".")
        spans = _differences(before, after)
        found.update({(_pattern(before, *span[:2]), _pattern(after, *span[2:])) for span in spans})
    return found


def rename_prefixes(prefixes: Iterable[str], names: Renamed) -> dict[str, str | None]:
    """Rename modules, the keys of a state_dict's `_metadata`, as `names` renames their tensors.

    A module without tensors follows the module around it. Where a wrapper's entry and the wrapped
    module's get the same name, the wrapped module's stays and the wrapper's becomes None.

        rename_prefixes(["", "module"], {"module.weight": "weight"})  # {"": None, "module": ""}
    """
    known = sorted(name for name, new in names.items() if new is not None)
    renamed = {prefix: _renamed(prefix, known, names) for prefix in prefixes}
    deepest = {renamed[prefix]: prefix for prefix in sorted(renamed, key=len)}
    return {prefix: new if deepest[new] == prefix else None for prefix, new in renamed.items()}


def _renamed(prefix: str, known: list[str], names: Renamed) -> str:
    modules = prefix.split(".") if prefix else []
    at = bisect_left(known, prefix and f"{prefix}.")
    near = known[max(at - 1, 0) : at + 1]  # sorted: the names that share most of the way
    depth, old = max(((_agreement(modules, name), name) for name in near), default=(0, ""))
    before, after = old.split("."), (names.get(old) or "").split(".")
    shift = len(after) - len(before)
    for i, end_i, j, _ in _differences(before, after):
        if end_i <= depth:
            break
        shift = j - max(i, depth)
    return ".".join(after[: depth + shift] + modules[depth:])


def _agreement(modules: list[str], name: str) -> int:
    together = zip(modules, name.split(".")[:-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], together))


def _differences(old: list[str], new: list[str]) -> Iterator[tuple[int, int, int, int]]:
    """Where the two differ, from the end: old[i:end_i] became new[j:end_j]."""
    i, j = len(old), len(new)
    while i or j:
        while i and j and old[i - 1] == new[j - 1]:
            i, j = i - 1, j - 1
        end_i, end_j = i, j
        while (i or j) and not (i and j and old[i - 1] == new[j - 1]):
            i, j = i - (i >= j), j - (j >= i)
        if (i, j) != (end_i, end_j):
            yield i, end_i, j, end_j


def _pattern(elements: list[str], start: int, end: int) -> str:
    front = "*." if 0 < start < end else ""
    return front + "".join(f"{element}." for element in elements[start:end])
