"""Read a pickle as text: into a tree of `nodes`, importing and calling nothing.

`pickletools` decodes the opcodes; this is the stack machine of `pickle.Unpickler` (Lib/pickle.py)
that puts down what would be called instead of calling it.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Callable
from typing import IO, Any

from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.pickles.nodes import Call, Dict, Global, List, Node, Text, Tuple

MOST_OPCODES = 10_000_000  # more than any model needs; a hostile file is stopped here
_WIDEST = 1 << 16  # bits of an integer: a megabyte of one, shared, would be copied over and over
_NAME = re.compile(r"[\w.<>]+")


def unpickle(
    data: bytes | IO[bytes], persistent: Callable[[Node], Node] = lambda identifier: identifier
) -> Node:
    """Read one pickle; a stream is left just after it.

    `persistent` turns a persistent id (of torch: a storage) into its node.

    Raises:
        CorruptCheckpoint: this is no pickle, or not a sound one.
    """
    machine = _Machine(persistent)
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise CorruptCheckpoint(f"the pickle uses {opcode.name}, which no checkpoint needs")
            action(machine, argument)
            if count > MOST_OPCODES:
                raise CorruptCheckpoint(f"the pickle has over {MOST_OPCODES:,} opcodes")
        return machine.stack.pop()
    except (IndexError, KeyError, ValueError, AttributeError, TypeError, OverflowError) as error:
        why = str(error)[:200]  # it may quote a line of any length
        raise CorruptCheckpoint(f"the pickle does not add up: {why}") from error


class _Machine:
    """The unpickler's stack, its marks and its memo."""

    def __init__(self, persistent: Callable[[Node], Node]) -> None:
        self.stack: list[Node] = []
        self.below: list[list[Node]] = []  # the stacks under each mark
        self.memo: dict[int, Node] = {}
        self.persistent = persistent

    def value(self, argument: Any) -> None:
        if type(argument) is int and argument.bit_length() > _WIDEST:
            raise ValueError(f"a number has {argument.bit_length():,} bits")
        self.stack.append(Text(argument) if type(argument) is str else argument)

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    def push(self, node: Node) -> None:
        self.stack.append(node)

    def above_mark(self) -> list[Node]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.above_mark()

    def pop_mark(self) -> None:
        self.above_mark()

    def tuple_of(self, count: int) -> None:
        if count > len(self.stack):
            raise IndexError("stack is empty")
        self.stack[-count:] = [Tuple(self.stack[-count:])]

    def dict_of_marked(self) -> None:
        items = self.above_mark()
        self.push(Dict(_paired(items)))

    def set_of(self, name: str, items: list[Node]) -> None:
        # As protocol 2 writes it: a call with a list.
        self.push(Call(Global("__builtin__", name), Tuple([List(items)])))

    def add_items(self) -> None:
        items = self.above_mark()
        made = self.stack[-1]
        if made.path != "builtins.set":
            raise TypeError(f"{made.path} is no set")
        _elements(made.args.elements[0]).extend(items)

    def append(self) -> None:
        item = self.stack.pop()
        _elements(self.stack[-1]).append(item)

    def appends(self) -> None:
        items = self.above_mark()
        _elements(self.stack[-1]).extend(items)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1].pairs.append((key, value))

    def set_items(self) -> None:
        items = self.above_mark()
        self.stack[-1].pairs.extend(_paired(items))

    def build(self) -> None:
        state = self.stack.pop()
        self.stack[-1].states.append(state)

    def reduce(self, new: bool) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(args, Tuple):
            raise TypeError("arguments are no tuple")
        self.push(Call(function, args, new=new))

    def new_with_kwargs(self) -> None:
        kwargs = self.stack.pop()
        self.reduce(new=True)
        self.stack[-1].kwargs = kwargs

    def instance(self, argument: str) -> None:
        args = Tuple(self.above_mark())
        self.push(Call(_global(*argument.split(" ", 1)), args))

    def object_of_marked(self) -> None:
        function, *args = self.above_mark()
        self.push(Call(function, Tuple(args)))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(_global(module, name))


def _elements(node: Node) -> list[Node]:
    # Not a tuple's: one that is appended to itself would be endless.
    if not isinstance(node, List | Call):
        raise TypeError("only lists grow")
    return node.elements


def _paired(items: list[Node]) -> list[tuple[Node, Node]]:
    if len(items) % 2:
        raise ValueError("a key has no value")
    return list(zip(items[::2], items[1::2], strict=True))


def _global(module: str, name: str) -> Global:
    # Torch reads these up to the line's end: a name with a space must not read differently here.
    if not (_NAME.fullmatch(module) and _NAME.fullmatch(name)):
        raise ValueError(f"{module!r}, {name!r} names no class or function")
    return Global(module, name)


def _python_2_text(text: str) -> Node:
    """A string of Python 2 is bytes, which pickletools shows as Latin-1."""
    raw = text.encode("latin-1")
    try:
        return Text(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return raw


_VALUES = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE "
    "BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8"
)
_ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {  # each gets the opcode's argument
    **dict.fromkeys(_VALUES.split(), _Machine.value),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    "MARK": lambda machine, _: machine.mark(),
    "MEMOIZE": lambda machine, _: machine.memoize(),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(Tuple([])),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": lambda machine, _: machine.push(Tuple(machine.above_mark())),
    "EMPTY_LIST": lambda machine, _: machine.push(List([])),
    "LIST": lambda machine, _: machine.push(List(machine.above_mark())),
    "EMPTY_DICT": lambda machine, _: machine.push(Dict([])),
    "DICT": lambda machine, _: machine.dict_of_marked(),
    "EMPTY_SET": lambda machine, _: machine.set_of("set", []),
    "FROZENSET": lambda machine, _: machine.set_of("frozenset", machine.above_mark()),
    "ADDITEMS": lambda machine, _: machine.add_items(),
    "APPEND": lambda machine, _: machine.append(),
    "APPENDS": lambda machine, _: machine.appends(),
    "SETITEM": lambda machine, _: machine.set_item(),
    "SETITEMS": lambda machine, _: machine.set_items(),
    "BUILD": lambda machine, _: machine.build(),
    "REDUCE": lambda machine, _: machine.reduce(new=False),
    "NEWOBJ": lambda machine, _: machine.reduce(new=True),
    "NEWOBJ_EX": lambda machine, _: machine.new_with_kwargs(),
    "OBJ": lambda machine, _: machine.object_of_marked(),
    "STACK_GLOBAL": lambda machine, _: machine.stack_global(),
    "BINPERSID": lambda machine, _: machine.push(machine.persistent(machine.stack.pop())),
    "GLOBAL": lambda machine, text: machine.push(_global(*text.split(" ", 1))),
    "INST": _Machine.instance,
    "PERSID": lambda machine, text: machine.push(machine.persistent(text)),
    "STRING": lambda machine, text: machine.push(_python_2_text(text)),
    "BINSTRING": lambda machine, text: machine.push(_python_2_text(text)),
    "SHORT_BINSTRING": lambda machine, text: machine.push(_python_2_text(text)),
    "BYTEARRAY8": lambda machine, data: machine.push(
        Call(Global("__builtin__", "bytearray"), Tuple([bytes(data)]))
    ),
}
