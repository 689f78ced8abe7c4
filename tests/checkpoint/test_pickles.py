import io
import pickle
import pickletools
import struct
import sys
import threading
import tracemalloc
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptools.checkpoint.data.content import Literal
from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.pickles.nodes import Dict, List, Node, Storage, Tuple, walk
from ptools.checkpoint.pickles.pickling import pickled
from ptools.checkpoint.pickles.tensors import STORAGES
from ptools.checkpoint.pickles.unpickle import unpickle

Make = Callable[[], Any]


def by_torch(value: Any, protocol: int = 2) -> bytes:
    """The data.pkl that torch.save writes."""
    out = io.BytesIO()
    torch.save(value, out, pickle_protocol=protocol)
    with zipfile.ZipFile(out) as archive:
        return archive.read("archive/data.pkl")


def storage(identifier: Node) -> Storage:
    _, kind, key, location, numel = identifier.elements
    itemsize = STORAGES[kind.name][1]
    return Storage(kind.name, key, location, numel, itemsize, Literal(bytes(numel * itemsize)))


def rewritten(data: bytes) -> bytes:
    return pickled(unpickle(data, storage), lambda found: found.key)


class Slots:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a, self.b = [1], "text"


class HoldsItself:
    """Is made of a list that holds it, so that it is met again among its own arguments."""

    def __init__(self, held: list[Any] | None = None) -> None:
        self.held = [self] if held is None else held

    def __reduce__(self) -> Any:
        return HoldsItself, (self.held,)


class FilledList(list[Any]):
    """Pickles with elements and a state."""


class FilledDict(dict[Any, Any]):
    """Pickles with pairs and a state."""


def state_dict() -> Any:
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    assert state._metadata
    return state


def stepped_optimizer(kind: type[torch.optim.Optimizer]) -> Any:
    model = torch.nn.Linear(2, 2)
    optimizer = kind(model.parameters(), lr=0.1)  # type: ignore[call-arg]
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {"optimizer": optimizer.state_dict(), "object": optimizer, "model": model}


def list_in_itself() -> Any:
    value: list[Any] = [1]
    value += [value, {"again": value}]
    return value


def tuple_in_itself(count: int) -> Any:
    held: list[Any] = []
    value = (held, *range(count - 1))
    held.append(value)
    return value


def attributed() -> Any:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.tag = "decay"  # type: ignore[attr-defined]
    return [parameter, parameter, torch.nn.Parameter(torch.ones(2), requires_grad=False)]


def shared() -> Any:
    base, text, numbers = torch.rand(4, 4), "a text of its own", [1, 2]
    state = {"w": base, "tied": base, "view": base[1:, ::2], "t": base.t()}
    return [state, state, text, text, numbers, numbers, (text, numbers), b"bytes", b"bytes"]


INTEGERS = sorted(
    sign * (1 << bits) + more
    for bits in (0, 7, 8, 15, 16, 31, 32, 47, 63, 64, 127, 8 * 254 - 1, 8 * 255 - 1, 8 * 300)
    for sign in (1, -1)
    for more in (-1, 0, 1)
)
KINDS: dict[str, Make] = {
    "state_dict": state_dict,
    "module": lambda: torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()),
    "data parallel": lambda: torch.nn.DataParallel(torch.nn.Linear(1, 1)),
    "transformer": lambda: torch.nn.TransformerEncoderLayer(4, 2),
    "SGD": lambda: stepped_optimizer(torch.optim.SGD),
    "Adam": lambda: stepped_optimizer(torch.optim.Adam),
    "scheduler": lambda: torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1), 0.2, total_steps=9
    ).state_dict(),
    "nothing": lambda: [None, True, False, (), [], {}, set(), frozenset(), "", b"", bytearray()],
    "bytes": lambda: [b"abc", bytes(range(256)), bytearray(b"xyz"), bytearray(range(256))],
    "sets": lambda: [{1, 2, 3}, frozenset({4}), {(1, 2), "x"}, {1}],
    "integers": lambda: INTEGERS,
    "floats": lambda: [0.0, -0.0, 1.5, 1e308, 5e-324, float("inf"), float("-inf"), float("nan")],
    "texts": lambda: ["", "é", "\N{SNOWMAN}", "\U0001f600", "\ud800", "a\0b\n", "x" * 70_000],
    "complex": lambda: [1 + 2j, complex("nan")],
    "tuples": lambda: [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), tuple(range(300)), ((),)],
    "slices": lambda: [slice(1, 2), slice(None), range(3), Ellipsis, NotImplemented],
    "dicts": lambda: {
        "many": dict.fromkeys(range(2500), "x"),
        "one": {1: 2},
        "odd": {(1, 2): 3, None: 4, 1.5: 5, b"k": 6},
    },
    "lists": lambda: [[0] * size for size in (1, 2, 999, 2500)],
    "full batches": lambda: [  # of which Python's two picklers write the end differently
        (dict.fromkeys(range(size)), [0] * size, OrderedDict.fromkeys(range(size)))
        for size in (1000, 1001, 2000, 2001)
    ],
    "mappings": lambda: [
        OrderedDict(b=1, a=2),
        OrderedDict(),
        OrderedDict(one=1),
        Counter("aab"),
        defaultdict(list, a=[1]),
        defaultdict(None),
    ],
    "stdlib": lambda: [
        Path("a/b"),
        Namespace(lr=0.1, opt="sgd"),
        datetime(2024, 1, 2, 3, 4, 5, 6),
        timedelta(1),
        partial(int, base=2),
        FilledList([1, 2]),
        FilledDict(a=1),
    ],
    "slots": lambda: [Slots()],
    "numpy": lambda: [
        np.float64(1.5),
        np.int32(-3),
        np.bool_(True),
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["a", "bc"]),
        np.array([1, "x", None], dtype=object),
        np.zeros(2, dtype=[("a", "<f4"), ("b", ">i2")]),
        np.dtype("float32"),
        np.random.RandomState(0).get_state(),
    ],
    "torch's own": lambda: [
        torch.Size([1, 2]),
        torch.Size([]),
        torch.device("cuda:1"),
        torch.device("cpu"),
        torch.float16,
        torch.Generator().get_state(),
        torch.rand(3).untyped_storage(),
        torch.rand(3).storage(),
        torch.nn.functional.silu,
    ],
    "dtypes": lambda: {
        str(dtype): torch.zeros(4, dtype=torch.uint8).repeat(dtype.itemsize).view(dtype)
        for dtype in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
            *(torch.complex128, torch.complex32, torch.int64, torch.int32, torch.int16),
            *(torch.int8, torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64),
            *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz),
            *(torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
        )
    },
    "layouts": lambda: [
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.eye(4).to_sparse_bsr((2, 2)),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 1, torch.qint8),
        torch.quantize_per_channel(
            torch.ones(2, 2), torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.quint8
        ),
        torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
        torch.empty(3, device="meta"),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.ones(3, dtype=torch.complex64).conj().imag,
        torch.tensor(3.5),
        torch.empty(0, 3),
        torch.rand(4, 1).expand(4, 5),
        torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    ],
    "parameters": attributed,
    "shared": shared,
    "a list in itself": list_in_itself,
    "an object in itself": HoldsItself,
    **{
        f"a tuple of {count} in itself": partial(tuple_in_itself, count)
        for count in (1, 2, 3, 4, 9)
    },
}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"full batches", "an object in itself"}))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_torch_pickles_comes_back_byte_for_byte(kind: str) -> None:
    data = by_torch(KINDS[kind]())
    assert rewritten(data) == data


WITH_TENSORS = {
    *("state_dict", "module", "data parallel", "transformer", "SGD", "Adam", "torch's own"),
    *("dtypes", "layouts", "parameters", "shared"),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", sorted(set(KINDS) - WITH_TENSORS))
def test_every_protocol_is_rewritten_to_an_equal_object(kind: str, protocol: int) -> None:
    value = KINDS[kind]()
    if kind == "slots" and protocol < 2:
        pytest.skip("Python has no way to pickle it so")
    again = pickle.loads(rewritten(pickle.dumps(value, protocol)))
    # Of equal objects, sharing included, pickle writes the same.
    assert pickle.dumps(again, 2) == pickle.dumps(pickle.loads(pickle.dumps(value, 2)), 2)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", sorted(WITH_TENSORS))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_later_protocols_of_torch_become_the_pickle_that_it_writes_by_default(
    kind: str, protocol: int
) -> None:
    value = KINDS[kind]()
    newer = rewritten(by_torch(value, protocol)).replace(b"cbuiltins\n", b"c__builtin__\n")
    assert newer == by_torch(value)


def test_an_object_among_its_own_arguments_stays_one() -> None:
    again = pickle.loads(rewritten(pickle.dumps(["before", HoldsItself(), "after"], 2)))
    assert again[0] == "before" and again[2] == "after"
    assert again[1].held[0] is again[1]
    assert len(again[1].held) == 1


def test_bytes_that_are_shared_are_written_once() -> None:
    """Else a megabyte that is mentioned a thousand times would become a gigabyte."""
    data = bytes(100_000)
    out = rewritten(pickle.dumps([data] * 1000, 4))
    assert len(out) < 1_000_000
    assert pickle.loads(out) == [data] * 1000


def in_time(work: Callable[[], Any], seconds: float = 10) -> Any:
    """The result of what must not hang, nor run out of stack."""
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, "it hangs or has failed"
    return done[0]


@pytest.mark.parametrize(
    ("down", "up"),
    [(b"]", b"a"), (b"(", b"t"), (b"N", b"\x85"), (b"(", b"l"), (b"c_\n_\n)R", b"a")],
)
def test_nesting_a_hundred_thousand_deep_is_read_and_written(down: bytes, up: bytes) -> None:
    deep = 100_000
    body = down + up * deep if down == b"N" else down * deep + up * (deep - 1) + up * (up != b"a")
    data = b"\x80\x02" + body + b"."

    def levels() -> int:
        return sum(isinstance(node, List | Tuple) for node in walk(unpickle(rewritten(data))))

    assert in_time(levels) >= deep - 1


def test_a_billion_laughs_are_one_line_each() -> None:
    """Each level holds the one before ten times: 10^100 elements if they were counted out."""
    data = b"\x80\x02]q\0"
    for level in range(1, 100):
        below = b"h" + bytes([level - 1])
        data += b"]q" + bytes([level]) + b"(" + below * 10 + b"e"
    data += b"."
    assert in_time(lambda: len(list(walk(unpickle(data))))) == 100
    assert in_time(lambda: len(rewritten(data))) < 5000


UNSOUND: dict[str, bytes] = {
    "nothing": b"",
    "only a stop": b".",
    "no stop": b"\x80\x02N",
    "an unknown opcode": b"\x80\x02\xff.",
    "a text that is no pickle": b"hello",
    "a memo miss": b"\x80\x02h\x07.",
    "a long memo miss": b"\x80\x02j\xff\xff\xff\xff.",
    "a text memo miss": b"g9\n.",
    "a memo of nothing": b"\x80\x02q\x00N.",
    "memoize of nothing": b"\x80\x04\x94N.",
    "a pop of nothing": b"\x80\x020N.",
    "a mark that is missing": b"\x80\x02Nt.",
    "a tuple of too few": b"\x80\x02N\x86.",
    "an append to nothing": b"\x80\x02Na.",
    "an append to a tuple": b"\x80\x02)Na.",
    "appends to a tuple": b"\x80\x02)(NNe.",
    "a tuple in itself by appending": b"\x80\x02N\x85q\x00h\x00a.",
    "a tuple in a set in itself": b"\x80\x02c_\n_\n)q\x00\x85R(h\x00\x90.",
    "an item of a list": b"\x80\x02]NNs.",
    "items of None": b"\x80\x02N(NNu.",
    "a key without a value": b"\x80\x02}(Nu.",
    "half a pair in DICT": b"(Nd.",
    "add to no set": b"\x80\x04](N\x90.",
    "a state of nothing": b"\x80\x02Nb.",
    "a state of None": b"\x80\x02NNb.",
    "arguments that are no tuple": b"\x80\x02c_\n_\n]R.",
    "an object of nothing": b"(o.",
    "a class that is a number": b"\x80\x04K\x01K\x02\x93.",
    "a class with a space": b"cos system\nx\n.",
    "a name with a space": b"cos\nsystem x\n.",
    "a class with a line's end": b"\x80\x04\x8c\x04os\nx\x8c\x01y\x93.",
    "an instance with a space": b"(ios system\nx\n.",
    "a class without a name": b"cos\n\n.",
    "a class that is no text": b"c\xff\xfe\nx\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "an extension of four bytes": b"\x80\x02\x84\1\0\0\0.",
    "a buffer outside": b"\x80\x05\x97.",
    "a read-only buffer": b"\x80\x05N\x98.",
    "a huge text": b"X\xff\xff\xff\xffabc.",
    "a huger text": b"\x8d" + b"\xff" * 8 + b"abc.",
    "huge bytes": b"B\xff\xff\xff\xff.",
    "huger bytes": b"\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "a huge bytearray": b"\x96" + struct.pack("<Q", 1 << 62) + b".",
    "a huge string": b"T\xff\xff\xff\x7f.",
    "a negative string": b"T\xff\xff\xff\xff.",
    "a huge number": b"\x8b\xff\xff\xff\x7f.",
    "a negative number of bytes": b"\x8b\xff\xff\xff\xff.",
    "a number of a megabyte": b"\x8b" + struct.pack("<I", 1 << 20) + b"\1" * (1 << 20) + b".",
    "a long name": b"c" + b"x " * 10_000 + b"\ny\n.",
    "a long float": b"F" + b"x" * 10_000 + b"\n.",
    "a long string": b"S" + b"x" * 10_000 + b"\n.",
    "a number of too many digits": b"I" + b"9" * 100_000 + b"\n.",
    "a long of too many digits": b"L" + b"9" * 100_000 + b"L\n.",
    "a number that is none": b"Iabc\n.",
    "a float that is none": b"Fabc\n.",
    "a line without an end": b"I12",
    "a text that is no UTF-8": b"X\2\0\0\0\xff\xfe.",
    "a string without quotes": b"Sabc\n.",
}


@pytest.mark.parametrize("case", UNSOUND)
def test_what_is_no_sound_pickle_is_refused(case: str) -> None:
    with pytest.raises(CorruptCheckpoint) as caught:
        pickled(unpickle(UNSOUND[case]), lambda found: found.key)
    message = str(caught.value)
    assert len(message) < 500 and "\n" not in message


@pytest.mark.parametrize("name", sorted(name for name in UNSOUND if "huge" in name))
def test_a_length_that_lies_costs_no_memory(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(CorruptCheckpoint):
        unpickle(UNSOUND[name])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_pickle_cut_short_anywhere_is_refused() -> None:
    for protocol in (0, 2, 4):
        data = pickle.dumps(
            [state for kind in ("sets", "stdlib") for state in KINDS[kind]()], protocol
        )
        for end in range(len(data)):
            with pytest.raises(CorruptCheckpoint):
                unpickle(data[:end])


def test_every_opcode_alone_and_doubled_is_read_or_refused() -> None:
    """With nothing, a mark, a list or a tuple below it, and with a plausible argument."""
    for opcode in pickletools.opcodes:
        code = opcode.code.encode("latin-1")
        for below in (b"", b"(", b"]", b")", b"N", b"(]", b"]NN", b"}NN", b"c_\n_\n)"):
            for argument in (b"", b"\0", b"1\n", b"a\nb\n", bytes(8), b"\x01" * 9):
                data = below + (code + argument) * 2 + b"."
                try:
                    pickled(unpickle(data), lambda found: found.key)
                except CorruptCheckpoint:
                    continue


def test_a_stream_is_left_just_after_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps([1], 4) + pickle.dumps({"a": 2}, 2) + b"rest")
    assert isinstance(unpickle(stream), List)
    assert isinstance(unpickle(stream), Dict)
    assert stream.read() == b"rest"


def test_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sys.modules)
    tree = unpickle(b"\x80\x02cantigravity\ngeohash\n(K\x01tR.")
    assert tree.path == "antigravity.geohash"
    assert set(sys.modules) == before


def test_the_number_of_opcodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptools.checkpoint.pickles.unpickle.MOST_OPCODES", 1000)
    with pytest.raises(CorruptCheckpoint, match="opcodes"):
        unpickle(b"]" + b"Na" * 600 + b".")
