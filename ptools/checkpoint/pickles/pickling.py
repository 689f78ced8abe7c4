"""Write a tree of `nodes` as a pickle of protocol 2, as torch's own pickler does."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.pickles.nodes import Call, Dict, Global, List, Node, Storage, Text, Tuple

_BATCH = 1000  # items between two marks, as in Lib/pickle.py


@dataclass(slots=True)
class _Raw:
    """Opcodes to write as they are."""

    code: bytes


@dataclass(slots=True)
class _EndCall:
    node: Call


@dataclass(slots=True)
class _EndTuple:
    node: Tuple


def pickled(root: Node, key_of: Callable[[Storage], str]) -> bytes:
    """The pickle of a tree; `key_of` names the record that holds a storage.

    Nesting may be of any depth: the work is kept on a list, not on Python's stack.
    """
    writer = _Writer(key_of)
    writer.work.append(root)
    while writer.work:
        writer.step(writer.work.pop())
    return b"\x80\x02" + b"".join(writer.out) + b"."


class _Writer:
    def __init__(self, key_of: Callable[[Storage], str]) -> None:
        self.out: list[bytes] = []
        self.work: list[Node] = []  # what is to be written, last first
        self.memo: dict[object, int] = {}
        self.key_of = key_of
        self.keep: list[Node] = []  # made here: an id in the memo must not be given out again
        self.encoded: dict[int, Call] = {}  # by the id of the bytes: shared ones stay shared

    def step(self, item: Node) -> None:
        if isinstance(item, _Raw):
            self.out.append(item.code)
        elif isinstance(item, _EndCall):
            self.end_call(item.node)
        elif isinstance(item, _EndTuple):
            self.end_tuple(item.node)
        elif (place := self.memo.get(_memo_key(item))) is not None:
            self.out.append(_get(place))
        elif (write := _WRITERS.get(type(item))) is not None:
            write(self, item)
        else:
            raise CorruptCheckpoint(f"cannot write a {type(item).__name__}")

    def then(self, *items: Node) -> None:
        """Write these next, in this order."""
        self.work.extend(reversed(items))

    def remember(self, node: Node) -> None:
        """The object just written is to be found in the memo from here on."""
        place = len(self.memo)
        self.memo[_memo_key(node)] = place
        self.out.append(b"q" + bytes([place]) if place < 256 else b"r" + struct.pack("<I", place))

    def text(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self.out.append(b"X" + struct.pack("<I", len(data)) + data)
        self.remember(text)

    def data(self, data: bytes) -> None:
        """Protocol 2 has no opcode for bytes: they are text, to be encoded."""
        if id(data) not in self.encoded:
            text = Tuple([data.decode("latin-1"), "latin1"])
            self.encoded[id(data)] = Call(Global("_codecs", "encode"), text)
        self.then(self.encoded[id(data)])

    def global_(self, node: Global) -> None:
        self.out.append(f"c{node.module}\n{node.name}\n".encode())
        self.remember(node)

    def tuple_(self, node: Tuple) -> None:
        if not node.elements:
            self.out.append(b")")
            return
        mark = [] if len(node.elements) < 4 else [_Raw(b"(")]
        self.then(*mark, *node.elements, _EndTuple(node))

    def end_tuple(self, node: Tuple) -> None:
        count = len(node.elements)
        if (place := self.memo.get(_memo_key(node))) is not None:
            # It holds itself, by way of a list, and was written in there: take that one.
            self.out.append((b"0" * count if count < 4 else b"1") + _get(place))
            return
        self.out.append({1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(count, b"t"))
        self.remember(node)

    def list_(self, node: List) -> None:
        self.out.append(b"]")
        self.remember(node)
        self.then(*_appends(node.elements))

    def dict_(self, node: Dict) -> None:
        self.out.append(b"}")
        self.remember(node)
        self.then(*_set_items(node.pairs))

    def call(self, node: Call) -> None:
        called = [node.function, node.args]
        code = b"\x81" if node.new else b"R"
        if node.kwargs is not None:
            called.append(node.kwargs)
            code = b"\x92"
        self.then(*called, _Raw(code), _EndCall(node))

    def end_call(self, node: Call) -> None:
        if (place := self.memo.get(_memo_key(node))) is not None:
            # It is among its own arguments, by way of a list, and was written there: take that one.
            self.out.append(b"0" + _get(place))
            return
        self.remember(node)
        states = [part for state in node.states for part in (state, _Raw(b"b"))]
        self.then(*_appends(node.elements), *_set_items(node.pairs), *states)

    def storage(self, node: Storage) -> None:
        """Each mention of a storage is written anew, as torch does; its key says which it is."""
        kind = Global("torch.storage" if node.kind == "UntypedStorage" else "torch", node.kind)
        identifier = Tuple(["storage", kind, self.key_of(node), node.location, node.numel])
        self.keep.append(identifier)
        self.then(identifier, _Raw(b"Q"))

    def number(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            code = b"K" + bytes([value])
        elif 0 <= value < 1 << 16:
            code = b"M" + struct.pack("<H", value)
        elif -(1 << 31) <= value < 1 << 31:
            code = b"J" + struct.pack("<i", value)
        else:
            data = value.to_bytes((value.bit_length() >> 3) + 1, "little", signed=True)
            if value < 0 and len(data) > 1 and data[-1] == 0xFF and data[-2] & 0x80:
                data = data[:-1]
            short = len(data) < 256
            code = b"\x8a" + bytes([len(data)]) if short else b"\x8b" + struct.pack("<i", len(data))
            code += data
        self.out.append(code)


def _memo_key(node: Node) -> object:
    """Equal names and texts of ours are written once, all else is told apart by identity."""
    if type(node) is str:
        return node
    if isinstance(node, Global):
        return node.module, node.name
    return id(node)


def _get(place: int) -> bytes:
    return b"h" + bytes([place]) if place < 256 else b"j" + struct.pack("<I", place)


def _appends(elements: Sequence[Node]) -> Iterator[Node]:
    yield from _batches([[element] for element in elements], one=b"a", many=b"e")


def _set_items(pairs: Sequence[tuple[Node, Node]]) -> Iterator[Node]:
    yield from _batches(pairs, one=b"s", many=b"u")


def _batches(groups: Sequence[Sequence[Node]], one: bytes, many: bytes) -> Iterator[Node]:
    for start in range(0, len(groups), _BATCH):
        batch = groups[start : start + _BATCH]
        if len(batch) > 1:
            yield _Raw(b"(")
        for group in batch:
            yield from group
        yield _Raw(many if len(batch) > 1 else one)


_WRITERS: dict[type, Callable[[_Writer, Node], None]] = {
    type(None): lambda writer, _: writer.out.append(b"N"),
    bool: lambda writer, value: writer.out.append(b"\x88" if value else b"\x89"),
    int: _Writer.number,
    float: lambda writer, value: writer.out.append(b"G" + struct.pack(">d", value)),
    str: _Writer.text,
    Text: _Writer.text,
    bytes: _Writer.data,
    Global: _Writer.global_,
    Tuple: _Writer.tuple_,
    List: _Writer.list_,
    Dict: _Writer.dict_,
    Call: _Writer.call,
    Storage: _Writer.storage,
}
