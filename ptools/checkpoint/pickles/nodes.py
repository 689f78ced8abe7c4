"""The inert tree that a pickle becomes: what it says, with nothing imported and nothing called.

Text, bytes, numbers, booleans and None stand for themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ptools.checkpoint.data.content import Content

Node: TypeAlias = Any  # one of the classes below, or an atom
ATOMS = (str, bytes, int, float, bool, type(None))

# Pickle's protocol 2 writes the names of Python 2.
_PYTHON_3 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Text(str):
    """A text of the source, kept apart from equal ones so that it is written back as it was."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Global:
    """The name of a class or function that unpickling would import."""

    module: str
    name: str
    path: str = field(init=False)  # `module.name`, as Python 3 calls it

    def __post_init__(self) -> None:
        self.path = f"{_PYTHON_3.get(self.module, self.module)}.{self.name}"


@dataclass(slots=True, eq=False)
class List:
    elements: list[Node]


@dataclass(slots=True, eq=False)
class Tuple:
    elements: list[Node]


@dataclass(slots=True, eq=False)
class Dict:
    pairs: list[tuple[Node, Node]]


@dataclass(slots=True, eq=False)
class Call:
    """An object as pickle makes it: `function(*args)`, then what is put into it.

    `new` tells `cls.__new__(cls, *args)` from a plain call.
    """

    function: Node
    args: Node
    kwargs: Node = None
    new: bool = False
    elements: list[Node] = field(default_factory=list)
    pairs: list[tuple[Node, Node]] = field(default_factory=list)
    states: list[Node] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The dotted name of what is called, "" if that is no global."""
        return self.function.path if isinstance(self.function, Global) else ""


@dataclass(slots=True, eq=False)
class Storage:
    """One block of memory that tensors view.

    `kind` is the class that torch pickles for it (`FloatStorage`), `numel` its elements of
    `itemsize` bytes, `key` its name in the source, and `content` its bytes.
    """

    kind: str
    key: str
    location: str
    numel: int
    itemsize: int
    content: Content

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize


def children(node: Node) -> list[Node]:
    """What a node holds, in the order in which it is written."""
    if isinstance(node, Call):
        pairs = [part for pair in node.pairs for part in pair]
        return [node.function, node.args, node.kwargs, *node.elements, *pairs, *node.states]
    if isinstance(node, List | Tuple):
        return node.elements
    if isinstance(node, Dict):
        return [part for pair in node.pairs for part in pair]
    return []


def walk(root: Node) -> Iterator[Node]:
    """Every node once, depth first, in the order in which they are written."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, ATOMS) or id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        stack.extend(reversed(children(node)))


def storages(root: Node) -> list[Storage]:
    """The storages below a node, in the order in which torch would number them."""
    return [node for node in walk(root) if isinstance(node, Storage)]


def mapping(node: Node) -> list[tuple[Node, Node]] | None:
    """The pairs of a dict or of an object that pickle fills like one; None for anything else."""
    if isinstance(node, Dict):
        return node.pairs
    if isinstance(node, Call) and (node.pairs or node.path in _MAPPINGS):
        return node.pairs
    return None


_MAPPINGS = {"collections.OrderedDict", "collections.Counter", "collections.defaultdict"}
