"""Make a tree that `torch.load(weights_only=True)` loads, whatever it holds.

What that refuses is converted (`conversions`) or dropped; nothing is imported, and each change is
listed. The tree is walked without recursion, so nesting may be of any depth.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.pickles.accepted import accepts, takes
from ptools.checkpoint.pickles.conversions import (
    DROPPED,
    EACH,
    kind_of,
    name_of,
    new_bytes,
    simplified,
)
from ptools.checkpoint.pickles.globals import Place, globals_of, is_suspicious, where
from ptools.checkpoint.pickles.nodes import ATOMS, Call, Dict, Global, List, Node, Tuple

_WIDEST = 255  # bytes of an int; more needs LONG4, which is refused
_MOST_MADE = 1 << 30  # bytes that conversions make: what is shared must not be multiplied
_MOST_ARGUMENTS = 8  # of what weights_only accepts
_UNDER_WAY: Final = object()  # a node that is being converted, and so cannot hold itself
_UNSEEN: Final = object()
_MAPPINGS = ("collections.OrderedDict", "collections.Counter")
_UNHASHABLE = ("builtins.set", "builtins.bytearray", *_MAPPINGS)

_Pairs: TypeAlias = list[tuple[Node, Node]]
_Steps: TypeAlias = Generator[tuple[Node, Place | None], Node, Node]


@dataclass(frozen=True, slots=True)
class Change:
    """What `make_plain` did at one place: `argparse.Namespace` at `args` became a `dict`.

    `became` is "" where it was dropped: the pair of a dict is gone, an element of a list is None.
    """

    where: str
    what: str
    became: str


def make_plain(root: Node) -> tuple[Node, list[Change]]:
    """The tree with only what `weights_only=True` loads, and what was changed for that.

    A tree that is plain already is returned as it is; the tree given is never changed. What is
    shared stays shared.

    Raises:
        CorruptCheckpoint: a tensor does not add up, or the tree would grow beyond measure.
    """
    changes: list[Change] = []
    suspicious = {path: at for path, at in globals_of(root).items() if is_suspicious(path)}
    while True:  # what is dropped late may have been all that kept something else from itself
        conversion = _Conversion()
        plain = conversion.run(root)
        if not conversion.changes:
            break
        changes += conversion.changes
        root = plain
    named = {change.what for change in changes}
    unnamed = [path for path in suspicious if path not in named]
    return root, changes + [Change(suspicious[path], path, "") for path in unnamed]


class _Conversion:
    """One walk over a tree; each node waits in a generator until what it holds is converted."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.memo: dict[int, Node] = {}
        self.keep: list[Node] = []  # made here: an id in the memo must not be given out again
        self.unhashable: set[int] = set()
        self.made = 0

    def run(self, root: Node) -> Node:
        stack = [self.root(root)]
        value: Node = None
        while True:
            try:
                node, place = stack[-1].send(value)
            except StopIteration as end:
                stack.pop()
                value = end.value
                if not stack:
                    return value
                continue
            if isinstance(node, ATOMS):
                value = self.atom(node, place)
            elif (value := self.memo.get(id(node), _UNSEEN)) is _UNDER_WAY:
                value = self.drop(node, place)
            elif value is _UNSEEN:
                stack.append(self.node(node, place))
                value = None

    def root(self, root: Node) -> _Steps:
        plain = yield root, None
        return None if plain is DROPPED else plain

    def node(self, node: Node, place: Place | None) -> _Steps:
        ids = [id(node)]
        self.memo[id(node)] = _UNDER_WAY
        simpler = self.simplest(node, ids)
        known = simpler if id(simpler) in ids else self.memo.get(id(simpler), simpler)
        if simpler is not node:
            self.note(node, known, place)
        if known is not simpler or known is DROPPED or isinstance(known, ATOMS):
            return self.settle(ids, self.atom(known, place))
        if isinstance(simpler, List | Dict):
            return (yield from self.container(simpler, ids, place))
        if isinstance(simpler, Tuple):
            return (yield from self.tuple_(simpler, ids, place))
        if isinstance(simpler, Call):
            convert = self.set_ if simpler.path == "builtins.set" else self.call
            return (yield from convert(simpler, ids, place))
        return self.settle(ids, simpler)  # a storage or a class that may stay

    def simplest(self, node: Node, ids: list[int]) -> Node:
        """What the rules make of a node, step by step; each step's id goes to `ids`."""
        while isinstance(node, Call | Global) and (simpler := simplified(node)) is not node:
            if simpler is DROPPED:
                return DROPPED
            self.spend(new_bytes(node, simpler))
            known = self.memo.get(id(simpler), _UNSEEN)
            if known is _UNDER_WAY:
                return DROPPED
            node = simpler
            if known is not _UNSEEN or isinstance(node, ATOMS):
                break
            ids.append(id(node))
            self.keep.append(node)
            self.memo[id(node)] = _UNDER_WAY
        return node

    def container(self, node: List | Dict, ids: list[int], place: Place | None) -> _Steps:
        """Known before what is in it is converted, for that may hold the container itself."""
        if isinstance(node, List):
            elements: List = self.settle(ids, List([]), hashable=False)
            yield from self.append(elements, node.elements, place)
            return elements
        pairs: Dict = self.settle(ids, Dict([]), hashable=False)
        yield from self.fill(pairs, node.pairs, place)
        return pairs

    def append(
        self, plain: List | Tuple, elements: Sequence[Node], place: Place | None
    ) -> Generator[tuple[Node, Place | None], Node, None]:
        for index, element in enumerate(elements):
            value = yield element, Place(place, index)
            plain.elements.append(None if value is DROPPED else value)

    def tuple_(self, node: Tuple, ids: list[int], place: Place | None) -> _Steps:
        plain = Tuple([])
        yield from self.append(plain, node.elements, place)
        hashable = self.unhashable.isdisjoint(map(id, plain.elements))
        return self.settle(ids, plain, hashable)

    def fill(
        self, plain: Dict | Call, pairs: _Pairs, place: Place | None
    ) -> Generator[tuple[Node, Place | None], Node, None]:
        taken = {key for key, _ in pairs if isinstance(key, ATOMS)}
        for key, value in pairs:
            below = Place(place, key)
            name = yield key, below
            if name is DROPPED:
                continue
            converted = isinstance(name, ATOMS) and name is not key
            if id(name) in self.unhashable or (converted and name in taken):
                self.drop(key, below)
                continue
            if converted:
                taken.add(name)
            plain_value = yield value, below
            if plain_value is not DROPPED:
                plain.pairs.append((name, plain_value))

    def call(self, node: Call, ids: list[int], place: Place | None) -> _Steps:
        """What weights_only makes by a call, its arguments first as pickle does."""
        arguments = node.args.elements if isinstance(node.args, Tuple) else []
        is_filled = node.pairs and node.path not in _MAPPINGS
        if len(arguments) > _MOST_ARGUMENTS or not isinstance(node.args, Tuple) or is_filled:
            return self.settle(ids, self.drop(node, place))
        plain = Call(node.function, Tuple([]), node.kwargs, node.new, node.elements)
        for argument in arguments:
            value = yield argument, place
            plain.args.elements.append(None if value is DROPPED else value)
        if not accepts(plain):
            return self.settle(ids, self.drop(node, place))
        self.settle(ids, plain, hashable=node.path not in _UNHASHABLE)
        yield from self.fill(plain, node.pairs, place)
        for state in node.states:
            value = yield state, place
            if takes(plain, value):
                plain.states.append(value)
            elif value is not DROPPED:
                self.drop(state, place)
        return plain

    def set_(self, node: Call, ids: list[int], place: Place | None) -> _Steps:
        """A set of what can be in one; of its elements none becomes None."""
        given: list[Node] = []
        match node.args:
            case _ if node.elements or node.pairs or node.states or node.kwargs is not None:
                return self.settle(ids, self.drop(node, place))
            case Tuple([]):
                pass
            case Tuple([List(given) | Tuple(given)]) if not node.new:
                pass
            case _:
                return self.settle(ids, self.drop(node, place))
        self.spend(EACH * len(given))
        elements = []
        for index, element in enumerate(given):
            value = yield element, Place(place, index)
            if id(value) in self.unhashable:
                self.drop(element, Place(place, index))
            elif value is not DROPPED:
                elements.append(value)
        return self.settle(ids, Call(node.function, Tuple([List(elements)])), hashable=False)

    def atom(self, value: Node, place: Place | None) -> Node:
        if isinstance(value, int) and value.bit_length() // 8 + 1 > _WIDEST:
            self.changes.append(Change(where(place), "int", "text"))
            return hex(value)
        return value

    def settle(self, ids: list[int], plain: Node, hashable: bool = True) -> Node:
        """From here on the nodes of these ids are `plain`."""
        for each in ids:
            self.memo[each] = plain
        if not hashable:
            self.unhashable.add(id(plain))
            self.keep.append(plain)
        return plain

    def note(self, node: Node, plain: Node, place: Place | None) -> None:
        rewritten = isinstance(plain, Call) and plain.path == node.path == "collections.OrderedDict"
        if not rewritten:  # to the same, as Python 3 pickles it
            self.changes.append(Change(where(place), name_of(node), kind_of(plain)))

    def drop(self, node: Node, place: Place | None) -> Node:
        self.note(node, DROPPED, place)
        return DROPPED

    def spend(self, nbytes: int) -> None:
        self.made += nbytes
        if self.made > _MOST_MADE:
            raise CorruptCheckpoint("the pickle says the same thing too many times over")
