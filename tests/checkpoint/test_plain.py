import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import math
import os
import pathlib
import pickle
import random
import re
import types
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from trees import write_tree

from ptools.checkpoint.data.content import Literal
from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.formats.torch_zip import read_torch_zip
from ptools.checkpoint.pickles import plain as plain_module
from ptools.checkpoint.pickles.nodes import Call, Dict, Global, List, Node, Tuple
from ptools.checkpoint.pickles.pickling import pickled
from ptools.checkpoint.pickles.plain import Change, make_plain
from ptools.checkpoint.pickles.tensors import new_tensor, ordered_dict
from ptools.checkpoint.pickles.unpickle import unpickle

# torch warns of every protocol but 2, and of some tensors saved here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

UTC = datetime.UTC
DTYPES = "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64".split()


class Colour(enum.Enum):
    RED = "red"
    NONE = None


class Level(enum.IntEnum):
    LOW = 1


class Bits(enum.Flag):
    A = 1
    B = 2


class Outer:
    class Mode(str, enum.Enum):  # noqa: UP042 (as people write it)
        FAST = "fast"

    @dataclasses.dataclass
    class Config:
        lr: float = 0.1


@dataclasses.dataclass
class Config:
    lr: float = 0.1
    tags: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Slots:
    a: int = 1


@dataclasses.dataclass(slots=True, frozen=True)
class Frozen:
    a: int = 1


class Slotted:
    __slots__ = ("__dict__", "a")

    def __init__(self) -> None:
        self.a, self.b = 1, Path("x")


class Point(NamedTuple):
    x: int
    y: int


class Attributes(dict[str, Any]):
    """Like EasyDict and Munch: a dict with attributes."""


class Strings(list[str]):
    pass


class Name(str):
    pass


class Subclass(torch.Tensor):
    pass


class Weight(torch.nn.Parameter):
    pass


class Canary:
    """Touches a file if it is ever unpickled for real."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Opened:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("/dev/null",)


class Evil:
    """A harmless class made with the result of a call that is not."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Config, (Opened(),), {"lr": 1.0}


def square(x: float) -> float:
    return x * x


def write(path: Path, root: Node) -> Path:
    write_tree(root, path)
    return path


def loads(path: Path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, TypeError, AttributeError):
        return False
    return True


class Made(NamedTuple):
    value: Any
    changes: list[Change]


def plain(thing: Any, folder: Path, protocol: int = 2) -> Made:
    """What torch loads with weights_only=True after `make_plain`."""
    torch.save(thing, folder / "in.pt", pickle_protocol=protocol)
    root, changes = make_plain(read_torch_zip(folder / "in.pt").root)
    out = folder / "out.pt"
    out.unlink(missing_ok=True)
    return Made(torch.load(write(out, root), weights_only=True), changes)


def same(left: Any, right: Any) -> bool:
    """Equal in type and value, tensors bit for bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        if left.dtype != right.dtype or left.shape != right.shape or left.layout != right.layout:
            return False
        if left.layout != torch.strided:
            left, right = left.to_dense(), right.to_dense()
        return left.stride() == right.stride() and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and math.isnan(left):
        return math.isnan(right)
    return bool(left == right)


INSTEAD = [  # what is saved, what is loaded, what the list of changes says
    (argparse.Namespace(lr=0.1, d={"p": Path("a")}), {"lr": 0.1, "d": {"p": "a"}}, "dict"),
    (types.SimpleNamespace(a=1), {"a": 1}, "dict"),
    (np.float64(1.5), 1.5, "float"),
    (np.float32("nan"), math.nan, "float"),
    (np.float16(0.5), 0.5, "float"),
    (np.int64(-3), -3, "int"),
    (np.uint8(200), 200, "int"),
    (np.bool_(True), True, "bool"),
    (np.complex64(1 + 2j), 1 + 2j, "complex"),
    (np.str_("grün"), "grün", "text"),
    (np.bytes_(b"ab"), b"ab", "bytes"),
    (np.array(2.5), torch.tensor(2.5, dtype=torch.float64), "tensor"),
    (np.zeros((0, 3), "f4"), torch.zeros(0, 3), "tensor"),
    (np.array([1, 2], ">i4"), torch.tensor([1, 2], dtype=torch.int32), "tensor"),
    (np.array([1 + 2j], ">c8"), torch.tensor([1 + 2j]), "tensor"),
    (np.array([1 + 2j]), torch.tensor([1 + 2j], dtype=torch.complex128), "tensor"),
    (np.array(["a", "bcd"]), ["a", "bcd"], "list"),
    (np.array([b"a", b"bcd"]), [b"a", b"bcd"], "list"),
    (np.array([1, "a", None], dtype=object), [1, "a", None], "list"),
    (np.dtype("f4"), "float32", "text"),
    (np.dtype("U5"), "U5", "text"),
    (pathlib.PurePosixPath("/data/a.txt"), "/data/a.txt", "text"),
    (pathlib.PureWindowsPath("C:/data/a.txt"), "C:\\data\\a.txt", "text"),
    (Path(), ".", "text"),
    (datetime.datetime(2024, 2, 29, 1, 2, 3, 4), "2024-02-29T01:02:03.000004", "text"),
    (datetime.datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01T00:00:00+00:00", "text"),
    (datetime.date(2024, 1, 1), "2024-01-01", "text"),
    (datetime.time(1, 2), "01:02:00", "text"),
    (datetime.timedelta(days=1, seconds=0.5), 86400.5, "float"),
    (Colour.RED, "red", "text"),
    (Colour.NONE, None, "None"),
    (Level.LOW, 1, "int"),
    (Bits.A | Bits.B, 3, "int"),
    (Outer.Mode.FAST, "fast", "text"),
    (uuid.UUID(int=7), str(uuid.UUID(int=7)), "text"),
    (decimal.Decimal("1.50"), "1.50", "text"),
    (fractions.Fraction(1, 3), "1/3", "text"),
    (collections.defaultdict(list, {"b": [1], "a": [2]}), {"b": [1], "a": [2]}, "dict"),
    (collections.deque([1, 2], 5), [1, 2], "list"),
    (frozenset([1, 2]), {1, 2}, "set"),
    (range(2, 8, 3), [2, 5], "list"),
    (slice(1, None), (1, None, None), "tuple"),
    (re.compile("a+"), "a+", "text"),
    (Config(0.2, [Level.LOW]), {"lr": 0.2, "tags": [1]}, "dict"),
    (Slots(3), {"a": 3}, "dict"),
    (Frozen(3), [3], "list"),
    (Slotted(), {"b": "x", "a": 1}, "dict"),
    (Outer.Config(), {"lr": 0.1}, "dict"),
    (Point(1, 2), (1, 2), "tuple"),
    (Attributes(a=1), {"a": 1}, "dict"),
    (Attributes(), {}, "dict"),
    (Strings(["a"]), ["a"], "list"),
    (Name("a"), "a", "text"),
    (1 << 3000, hex(1 << 3000), "text"),
    (Subclass(torch.ones(2)), None, "tensor"),
    (functools.partial(square, 2), None, ""),
    (square, None, ""),
    (Config, None, ""),
    (random.Random(1), None, ""),
    (np.random.RandomState(0), None, ""),
    (np.random.default_rng(0), None, ""),
    (np.array([(1, 2.0)], dtype="i4,f4"), None, ""),
    (np.datetime64("2020"), None, ""),
    (np.longdouble(1), None, ""),
    (torch.Generator(), None, ""),
    (range(10**12), None, ""),
    (Opened(), None, ""),
    (object(), None, ""),
]
STAYS = [
    {"a": [1, 2.5, None, True, "x"], 3: ("t", (), -(1 << 70))},
    collections.OrderedDict(a=torch.ones(2), b=[]),
    collections.Counter("aab"),
    torch.nn.Linear(2, 2).state_dict(),
    {
        "set": {1, (2, "x")},
        "empty": set(),
        "complex": 1 + 2j,
        "bytes": b"a\xff",
        1.5: bytearray(b""),
    },
    [bytearray(b"ab"), torch.Size([1, 2]), torch.device("cuda:1"), torch.float32, torch.strided],
    [
        torch.nn.Parameter(torch.ones(2)),
        Weight(torch.ones(2)),
        torch.ones(2, requires_grad=True),
        torch.ones(3)[::2],
    ],
    [
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2).to(torch.float8_e5m2),
        torch.ones(2).conj(),
    ],
    [torch.eye(2).to_sparse(), torch.eye(2).to_sparse_csr(), torch.ones(2, device="meta")],
    [
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.tensor(1, dtype=torch.uint16),
    ],
    [torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.qint8)],
    torch.ones(2, 2).untyped_storage(),
    torch.get_rng_state(),
    random.getstate(),
]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(("thing", "expected", "became"), INSTEAD, ids=lambda value: type(value))
def test_what_is_refused_becomes_plain(
    thing: Any, expected: Any, became: str, protocol: int, tmp_path: Path
) -> None:
    made = plain({"a": {"thing": thing, "b": 1}}, tmp_path, protocol)
    assert not loads(tmp_path / "in.pt")
    if became == "tensor" and expected is None:
        expected = torch.ones(2)
        made.value["a"]["thing"] = made.value["a"]["thing"].detach()
    assert same(made.value, {"a": {"thing": expected, "b": 1} if became else {"b": 1}})
    assert made.changes[0].where == "a.thing"
    assert made.changes[0].became == became


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("thing", STAYS, ids=range(len(STAYS)))
def test_what_is_accepted_stays_as_it_is(thing: Any, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    torch.save(thing, path, pickle_protocol=protocol)
    source = read_torch_zip(path)
    root, changes = make_plain(source.root)
    assert root is source.root
    assert changes == []
    if protocol == 2:
        assert pickled(root, lambda storage: storage.key) == source.pickle
    assert loads(write(tmp_path / "out.pt", root))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_keep_every_value_and_their_strides(
    dtype: str, protocol: int, tmp_path: Path
) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for order in (array, np.asfortranarray(array), array.astype(array.dtype.newbyteorder(">"))):
        tensor = plain(order, tmp_path, protocol).value
        expected = torch.from_numpy(order.astype(dtype, order="K"))
        assert same(tensor, expected)


def test_no_bytes_at_all_are_bytes_too(tmp_path: Path) -> None:
    made = plain([b""], tmp_path)
    assert not loads(tmp_path / "in.pt")
    assert made == ([b""], [Change("[0]", "builtins.bytes", "bytes")])


def test_the_list_of_changes_says_what_was_where(tmp_path: Path) -> None:
    tree = {
        "args": argparse.Namespace(lr=np.float32(1)),
        "callbacks": [(Level.LOW, square)],
        np.int64(3): frozenset([Colour.RED]),
    }
    made = plain(tree, tmp_path)
    assert made.value == {"args": {"lr": 1.0}, "callbacks": [(1, None)], 3: {"red"}}
    assert [(change.where, change.what, change.became) for change in made.changes] == [
        ("args", "argparse.Namespace", "dict"),
        ("args.lr", "numpy.float32", "float"),
        ("callbacks[0][0]", f"{__name__}.Level", "int"),
        ("callbacks[0][1]", f"{__name__}.square", ""),
        (f"[{np.float64(0).__reduce__()[0].__module__}.scalar]", "numpy.int64", "int"),
        (f"[{np.float64(0).__reduce__()[0].__module__}.scalar]", "builtins.frozenset", "set"),
        (f"[{np.float64(0).__reduce__()[0].__module__}.scalar][0]", f"{__name__}.Colour", "text"),
    ]


def test_nothing_is_ever_run(tmp_path: Path) -> None:
    sign = tmp_path / "ran"
    for hidden in (
        Canary(str(sign)),
        {"a": [Canary(str(sign))]},
        {Canary(str(sign)): 1},
        argparse.Namespace(a=Canary(str(sign))),
        collections.OrderedDict(a=Canary(str(sign))),
        functools.partial(square, Canary(str(sign))),
    ):
        made = plain(hidden, tmp_path)
        assert "posix.system" in [change.what for change in made.changes]
        assert not next(change for change in made.changes if change.what == "posix.system").became
    assert not sign.exists()


def test_a_call_hidden_in_what_is_converted_is_named_too(tmp_path: Path) -> None:
    made = plain([Evil()], tmp_path)
    assert made.value == [{"lr": 1.0}]
    assert Change("[0]", f"{open.__module__}.open", "") in made.changes


def test_what_cannot_be_a_key_goes_with_its_value(tmp_path: Path) -> None:
    tree = {frozenset([1]): 1, (1, square): 2, (1, frozenset([2])): 3, square: 4, Path("p"): 5}
    assert plain(tree, tmp_path).value == {(1, None): 2, "p": 5}
    assert plain({frozenset([1]), 2, Path("p")}, tmp_path).value == {2, "p"}


def test_keys_that_become_equal_do_not_replace_each_other(tmp_path: Path) -> None:
    made = plain({Path("a"): 1, "a": 2, Colour.RED: 3, "b": 4}, tmp_path)
    assert made.value == {"a": 2, "red": 3, "b": 4}
    assert made.changes[1].became == ""


def test_what_is_shared_stays_shared(tmp_path: Path) -> None:
    array, args, tensor = np.ones(3), argparse.Namespace(a=[1]), torch.ones(4)
    value = plain(
        [array, array, args, {"x": args}, tensor[:2], tensor[2:], vars(args)], tmp_path
    ).value
    assert value[0] is value[1]
    assert value[2] is value[3]["x"]
    assert value[2] is value[6]
    assert value[4].untyped_storage().data_ptr() == value[5].untyped_storage().data_ptr()


def test_an_object_that_holds_itself_is_a_dict_that_does(tmp_path: Path) -> None:
    args = argparse.Namespace(a=1)
    args.me, args.all = args, [args]
    value = plain(args, tmp_path).value
    assert value["me"] is value
    assert value["all"][0] is value


def test_a_tuple_that_holds_itself_is_cut(tmp_path: Path) -> None:
    inner: list[Any] = []
    holder = (inner, 1)
    inner.append(holder)
    assert plain({"t": holder}, tmp_path).value == {"t": ([None], 1)}
    assert make_plain(unpickle(pickle.dumps(inner, 2)))[1] == []  # here the list holds itself


def test_a_cycle_first_seen_in_a_key_that_goes_is_cut_too(tmp_path: Path) -> None:
    inner = List([])
    loop = Tuple([inner])
    inner.elements.append(loop)
    root, changes = make_plain(Dict([(Tuple([inner]), 1), ("b", loop)]))
    assert torch.load(write(tmp_path / "out.pt", root), weights_only=True) == {"b": ([None],)}
    assert [change.became for change in changes] == ["", ""]


def test_parameters_and_subclasses_keep_their_tensors(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = Path("a")  # type: ignore[attr-defined]
    value = plain(parameter, tmp_path).value
    assert type(value) is torch.nn.Parameter
    assert value.note == "a"  # type: ignore[attr-defined]
    tensor = torch.ones(2)
    tensor.note = {"lr": np.float64(2)}  # type: ignore[attr-defined]
    assert plain(tensor, tmp_path).value.note == {"lr": 2.0}


def test_state_dicts_keep_their_metadata(tmp_path: Path) -> None:
    state = torch.nn.Linear(1, 1).state_dict()
    value = plain({"model": state, "args": argparse.Namespace()}, tmp_path).value
    assert value["model"]._metadata == state._metadata
    assert same(value["model"], state)


def test_tensors_made_by_older_functions_are_read(tmp_path: Path) -> None:
    array = unpickle(pickle.dumps(np.ones(2, "f4"), 2))
    rest = [Global("torch", "float32"), "xla:0", False]
    indices = b"".join(value.to_bytes(8, "little") for value in (0, 1, 2, 0, 1))
    parts = [
        new_tensor("crow", Literal(indices[:24]), "int64", (3,)),
        new_tensor("col", Literal(indices[24:]), "int64", (2,)),
        new_tensor("values", Literal(bytes(8)), "float32", (2,)),
        Call(Global("torch", "Size"), Tuple([Tuple([2, 2])])),
    ]
    layout = Call(Global("torch.serialization", "_get_layout"), Tuple(["torch.sparse_csr"]))
    tensor = new_tensor("x", Literal(bytes(8)), "float32", (2,))
    old = Tuple([tensor.function, Global("torch", "Tensor"), tensor.args, Dict([("note", 1)])])
    utils = "torch._utils"
    calls: list[Node] = [
        Call(Global(utils, "_rebuild_device_tensor_from_numpy"), Tuple([array, *rest])),
        Call(Global(utils, "_rebuild_xla_tensor"), Tuple([array, *rest])),
        Call(Global(utils, "_rebuild_sparse_csr_tensor"), Tuple([layout, Tuple(parts)])),
        Call(Global("torch.tensor", "_rebuild_from_type_v2"), old),
    ]
    root, changes = make_plain(List(calls))
    value = torch.load(write(tmp_path / "out.pt", root), weights_only=True)
    assert same(value[0], torch.ones(2))
    assert value[0] is value[1]
    assert value[2].layout == torch.sparse_csr
    assert value[3].note == 1
    assert [change.became for change in changes] == ["tensor"] * 4


def node_of(path: str, value: Node, field: str = "_val") -> Call:
    module, name = path.rsplit(".", 1)
    state = Dict(
        [("_metadata", Call(Global("omegaconf.base", "Metadata"), Tuple([]))), (field, value)]
    )
    return Call(Global(module, name), Tuple([]), new=True, states=[state])


def test_configurations_of_omegaconf_and_others_become_dicts() -> None:
    number = node_of("omegaconf.nodes.IntegerNode", 1)
    union = node_of("omegaconf.base.UnionNode", number, "_content")
    listed = node_of("omegaconf.listconfig.ListConfig", List([number]), "_content")
    pairs = [("a", number), ("b", listed), ("c", union)]
    config = node_of("omegaconf.dictconfig.DictConfig", Dict(pairs), "_content")
    config.states[0].pairs.append(("_parent", config))
    fields = Dict([("_fields", Dict([("x", 1)])), ("_locked", False)])
    ml = Call(
        Global("ml_collections.config_dict.config_dict", "ConfigDict"),
        Tuple([]), new=True, states=[fields],
    )  # fmt: skip
    root, changes = make_plain(Dict([("config", config), ("ml", ml)]))
    assert pickle.loads(pickled(root, str)) == {
        "config": {"a": 1, "b": [1], "c": 1},
        "ml": {"x": 1},
    }
    assert [(change.where, change.became) for change in changes] == [
        ("config", "dict"),
        ("config.b", "list"),
        ("ml", "dict"),
    ]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_objects_of_every_protocol(protocol: int) -> None:
    things = [
        Config(),
        Attributes(a=1),
        Strings(["x"]),
        Point(1, 2),
        Name("n"),
        Level.LOW,
        Outer.Mode.FAST,
    ]
    root, _ = make_plain(unpickle(pickle.dumps(things, protocol)))
    expected = [{"lr": 0.1, "tags": []}, {"a": 1}, ["x"], (1, 2), "n", 1, "fast"]
    assert pickle.loads(pickled(root, str)) == expected


def test_a_whole_optimiser_and_module_are_dicts_of_their_state(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.25)
    model(torch.ones(1)).backward()
    optimiser.step()
    value = plain({"optimiser": optimiser, "model": model}, tmp_path).value
    assert value["optimiser"]["param_groups"][0]["lr"] == 0.25
    weight = value["model"]["_parameters"]["weight"]
    assert value["optimiser"]["param_groups"][0]["params"][0] is weight
    assert torch.equal(weight, model.weight)
    assert value["optimiser"]["state"][weight]["step"] == 1


def test_depth_and_sharing_cost_nothing(tmp_path: Path) -> None:
    deep: Node = Call(Global("os", "system"), Tuple(["true"]))
    for _ in range(10_000):
        state = Dict([("a", List([Tuple([deep])]))])
        deep = Call(Global("argparse", "Namespace"), Tuple([]), new=True, states=[state])
    changes = make_plain(deep)[1]
    assert len(changes) == 10_001
    assert max(len(change.where) for change in changes) < 200
    wide: Node = Call(Global("argparse", "Namespace"), Tuple([]), new=True, states=[Dict([])])
    for _ in range(100):
        wide = List([wide, wide])
    assert len(make_plain(wide)[1]) == 1


def test_what_would_multiply_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_module, "_MOST_MADE", 10_000_000)
    pairs = List([List([index, None]) for index in range(1000)])
    name = Global("collections", "OrderedDict")
    with pytest.raises(CorruptCheckpoint, match="too many times"):
        make_plain(List([Call(name, Tuple([pairs])) for _ in range(1000)]))


def test_the_pairs_of_python_2_are_read(tmp_path: Path) -> None:
    pairs = List([List(["a", 1]), List(["b", Call(Global("os", "system"), Tuple(["x"]))])])
    root, _ = make_plain(Call(Global("collections", "OrderedDict"), Tuple([pairs])))
    value = torch.load(write(tmp_path / "out.pt", root), weights_only=True)
    assert value == collections.OrderedDict(a=1)


def nested_types(depth: int) -> Tuple:
    function, kind = Global("torch._tensor", "_rebuild_from_type_v2"), Global("torch", "Tensor")
    arguments = Tuple([])
    for _ in range(depth):
        arguments = Tuple([function, kind, arguments, None])
    return arguments


@pytest.mark.parametrize(
    "call",
    [
        Call(Global("collections", "OrderedDict"), Tuple([1])),
        Call(Global("collections", "OrderedDict"), 5),
        Call(Global("collections", "Counter"), Tuple([5])),
        Call(Global("builtins", "bytearray"), Tuple([10**12])),
        Call(Global("builtins", "set"), Tuple([5])),
        Call(Global("builtins", "set"), Tuple([]), elements=[1]),
        Call(Global("builtins", "set"), Tuple([List([1])]), new=True),
        Call(Global("builtins", "bytearray"), Tuple([]), pairs=[(1, 2)]),
        Call(Global("builtins", "bytearray"), Tuple([]), elements=[1]),
        Call(Global("torch._tensor", "_rebuild_from_type_v2"), nested_types(3)),
        Call(Global("builtins", "complex"), Tuple(["x"])),
        Call(Global("torch", "device"), Tuple(["nowhere"])),
        Call(Global("torch", "Size"), Tuple([Tuple([1 << 70])])),
        Call(Global("_codecs", "encode"), Tuple(["€", "latin1"])),
        Call(Global("_codecs", "encode"), Tuple(["a", "zip"])),
        Call(Global("torch", "FloatTensor"), Tuple([10**12])),
        Call(Global("torch._utils", "_rebuild_parameter"), Tuple([1, True, None])),
        Call(Global("torch._utils", "_rebuild_wrapper_subclass"), Tuple([])),
        Call(Global("torch._tensor", "_rebuild_from_type_v2"), Tuple([])),
        Call(Global("numpy._core.multiarray", "scalar"), Tuple([])),
        Call(Global("numpy._core.multiarray", "_reconstruct"), Tuple([])),
        Call(Global("datetime", "datetime"), Tuple([b"ten bytes!"])),
        Call(Global("datetime", "timedelta"), Tuple([math.inf])),
        Call(Global("uuid", "UUID"), Tuple([]), states=[Dict([("int", "x")])]),
        Call(Global("fractions", "Fraction"), Tuple([List([])])),
        Call(Global("copyreg", "_reconstructor"), Tuple([])),
        Call(Global("omegaconf", "DictConfig"), Tuple([])),
        Call(Call(Global("os", "system"), Tuple([])), Tuple([1])),
        Call(7, Tuple([1])),
    ],
)
def test_what_is_malformed_is_dropped(call: Call) -> None:
    root, changes = make_plain(List([call]))
    assert root.elements == [None]
    assert [change.became for change in changes][-1] == ""


def test_values_that_lead_to_themselves_end() -> None:
    first = node_of("omegaconf.nodes.AnyNode", None)
    second = node_of("omegaconf.nodes.AnyNode", first)
    first.states[0].pairs[1] = ("_val", second)
    assert make_plain(List([first]))[0].elements == [None]


def any_value(rng: random.Random, depth: int, made: list[Any]) -> Any:
    leaves: list[Any] = [thing for thing, _, _ in INSTEAD]
    kind = rng.randrange(9 if depth else 3)
    if kind == 0 and made:
        return rng.choice(made)
    if kind < 3:
        return rng.choice([*leaves, 1, "a", torch.ones(2), 1.5, None, b"x"])
    values = [any_value(rng, depth - 1, made) for _ in range(rng.randrange(4))]
    named = {f"k{index}": value for index, value in enumerate(values)}
    keyed = dict(zip([Path("k"), (1, Colour.RED), frozenset([1]), Level.LOW], values, strict=False))
    thing = [
        values, tuple(values), named, argparse.Namespace(**named), Attributes(named), keyed,
    ][kind - 3]  # fmt: skip
    made.append(thing)
    return thing


@pytest.mark.parametrize("seed", range(60))
def test_any_mixture_loads_and_is_plain_from_then_on(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    thing = [any_value(rng, 4, []) for _ in range(6)]
    torch.save(thing, tmp_path / "in.pt", pickle_protocol=rng.choice([2, 4, 5]))
    root, changes = make_plain(read_torch_zip(tmp_path / "in.pt").root)
    assert loads(write(tmp_path / "out.pt", root))
    assert bool(changes) or loads(tmp_path / "in.pt")
    again, more = make_plain(read_torch_zip(tmp_path / "out.pt").root)
    assert more == []
    assert pickled(again, lambda storage: storage.key) == read_torch_zip(tmp_path / "out.pt").pickle


def test_the_tree_given_is_left_alone() -> None:
    root = ordered_dict([("args", Call(Global("argparse", "Namespace"), Tuple([]), new=True))])
    before = pickled(root, str)
    make_plain(root)
    assert pickled(root, str) == before
