import io
import json
import os
import pickle
import random
import signal
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptools.checkpoint import fix_ckpt
from ptools.checkpoint.look.info import describe
from ptools.errors import PtoolsError

RAN: list[str] = []


def sing() -> None:
    RAN.append("a canary")


class Canary:
    """Sings if anything unpickles it."""

    def __reduce__(self) -> Any:
        return sing, ()


class Shell:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def save(value: Any, path: Path, old: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not old)
    return path


def zipped(value: Any) -> dict[str, bytes]:
    """The records that torch.save writes."""
    out = io.BytesIO()
    torch.save(value, out)
    with zipfile.ZipFile(out) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return path


def with_pickle(path: Path, data: bytes, **storages: bytes) -> Path:
    """A torch file of a handmade pickle, with storages by key (`_0` is data/0)."""
    records = {"a/data.pkl": data, "a/byteorder": b"little", "a/version": b"3\n"}
    records |= {f"a/data/{key.removeprefix('_')}": content for key, content in storages.items()}
    return write_zip(path, records)


@contextmanager
def seconds(most: int) -> Iterator[None]:
    """Fail instead of hanging."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still at work after {most} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(most)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(path: Path, **options: Any) -> PtoolsError:
    """The error that fixing and describing a file end in; nothing is written."""
    before = sorted(path.parent.rglob("*"))
    with seconds(20):
        with pytest.raises(PtoolsError) as caught:
            fix_ckpt(path, path.parent / "out.pt", **options)
        with pytest.raises(PtoolsError):
            describe(path)
    assert sorted(path.parent.rglob("*")) == before
    assert "\n" not in caught.value.message and len(caught.value.message) < 500
    return caught.value


def fixed(path: Path, **options: Any) -> Any:
    """What torch loads of the fixed file."""
    out = path.with_name("out.pt")
    with seconds(20):
        fix_ckpt(path, out, force=True, **options)
    return torch.load(out, weights_only=True)


# A tensor of `numel` float32 in storage 0, handmade.
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu%btQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(%b%b%b%b\x89ccollections\nOrderedDict\n)RtR"


def integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor_pickle(
    size: tuple[int, ...] = (2,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    numel: int = 2,
    storage: bytes = STORAGE,
) -> bytes:
    """A dict with one tensor."""
    mentioned = storage % integer(numel) if b"%b" in storage else storage
    made = TENSOR % (mentioned, integer(offset), integers(size), integers(stride))
    return b"\x80\x02}X\1\0\0\0w" + made + b"s."


def test_the_handmade_pickle_is_sound(tmp_path: Path) -> None:
    path = with_pickle(tmp_path / "a.pt", tensor_pickle(), _0=struct.pack("<2f", 1, 2))
    assert torch.load(path, weights_only=True)["w"].tolist() == [1, 2]
    assert fixed(path)["w"].tolist() == [1, 2]


@pytest.mark.parametrize("old", [False, True])
def test_what_would_run_on_loading_never_runs(tmp_path: Path, old: bool) -> None:
    touched = tmp_path / "touched"
    value = {"w": torch.ones(2), "canary": Canary(), "shell": Shell(f"touch {touched}")}
    path = save(value, tmp_path / "a.pt", old)
    RAN.clear()
    assert {found.path for found in describe(path).runs_code} >= {f"{os.system.__module__}.system"}
    assert list(fixed(path)) == ["w"]
    fix_ckpt(path, tmp_path / "b.safetensors", weights_only=True)
    if not old:
        fix_ckpt(path, inplace=True)
        assert list(torch.load(path, weights_only=True)) == ["w"]
    assert not RAN and not touched.exists()
    save(value, path, old)
    torch.load(path, weights_only=False)  # the canary would have sung
    assert RAN and touched.exists()


def test_what_would_run_in_a_distributed_folder_never_runs(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    folder = tmp_path / "dcp"
    dcp.save({"w": torch.ones(2), "canary": Canary()}, checkpoint_id=folder, no_dist=True)
    RAN.clear()
    assert torch.equal(fixed(folder)["w"], torch.ones(2))
    (folder / ".metadata").write_bytes(pickle.dumps(Shell(f"touch {tmp_path / 'touched'}")))
    refused(folder)
    assert not RAN and not (tmp_path / "touched").exists()


def test_a_record_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Torch reads the last one of them, and so might a scanner read the other."""
    good, evil = zipped({"w": torch.ones(2)}), zipped({"evil": torch.ones(2)})
    for name in ("archive/data.pkl", "archive/DATA.pkl", "archive/data.pkl?", "archive/DATA/0"):
        for first in (True, False):
            extra = {name + "~": evil["archive/data.pkl"]}
            path = write_zip(tmp_path / "a.pt", extra | good if first else good | extra)
            data = path.read_bytes().replace((name + "~").encode(), f"{name}\0".encode())
            data = data.replace(b"data.pkl?\0", b"data.pkl\0?")
            path.write_bytes(data)
            assert "record" in refused(path).message
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(tmp_path / "a.pt", "w") as archive,
    ):
        for records in (evil, good):
            for name, content in records.items():
                archive.writestr(name, content)
    assert "two records" in refused(tmp_path / "a.pt").message


def test_a_record_that_differs_only_in_case_is_the_same_one_to_torch(tmp_path: Path) -> None:
    good, evil = zipped({"w": torch.ones(2)}), zipped({"evil": torch.ones(2)})
    path = write_zip(tmp_path / "a.pt", good | {"archive/DATA.PKL": evil["archive/data.pkl"]})
    assert list(torch.load(path, weights_only=True)) == ["evil"]
    assert "two records" in refused(path).message


def test_two_top_folders_are_refused(tmp_path: Path) -> None:
    records = zipped({"w": torch.ones(2)})
    path = write_zip(tmp_path / "a.pt", records | {"other/data.pkl": b"x"})
    assert "top folder" in refused(path).message


def test_names_that_are_odd_or_long_are_refused_briefly(tmp_path: Path) -> None:
    records = zipped({"w": torch.ones(2)})
    for name in (
        "archive/\n",
        "archive/" + "x" * 60_000,
        *(f"{'y' * 400}{number}/z" for number in range(3)),
    ):
        records[name] = b"x"
        refused(write_zip(tmp_path / "a.pt", records))


def test_many_records_of_one_name_are_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    names = [b"a/%d" % number for number in range(30_000)] + [b"a/data.pkl", b"a/0"]
    header = struct.pack("<IHHHHHIIIHH", 0x04034B50, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0) + b"a/data.pkl"
    entries = b"".join(
        struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, *[0] * 9, len(name), *[0] * 6) + name
        for name in names
    )
    end = struct.pack(
        "<IHHHHIIH", 0x06054B50, 0, 0, len(names), len(names), len(entries), len(header), 0
    )
    path.write_bytes(header + entries + end)
    with seconds(5):
        assert "two records" in refused(path).message


Forge = Callable[[bytearray, int, int], None]  # of a file's bytes, one entry, and its header


def u32(data: bytearray, at: int, value: int) -> None:
    struct.pack_into("<I", data, at, value)


def zip64_offset(data: bytearray, entry: int, header: int) -> None:
    """An offset that is said to be in an extra field, which is not there."""
    u32(data, entry + 42, 0xFFFFFFFF)


FORGED: dict[str, Forge] = {
    "encrypted": lambda data, entry, header: struct.pack_into("<H", data, entry + 8, 1),
    "strongly encrypted": lambda data, entry, header: struct.pack_into("<H", data, entry + 8, 64),
    "masked": lambda data, entry, header: struct.pack_into("<H", data, entry + 8, 0x2000),
    "an unusual method": lambda data, entry, header: struct.pack_into("<H", data, entry + 10, 12),
    "one byte more": lambda data, entry, header: u32(data, entry + 24, 9),
    "one byte less": lambda data, entry, header: u32(data, entry + 24, 7),
    "both one more": lambda data, entry, header: (
        u32(data, entry + 24, 9),
        u32(data, entry + 20, 9),
    )[0],
    "huge sizes": lambda data, entry, header: (
        u32(data, entry + 24, 0xFFFFFFF0),
        u32(data, entry + 20, 0xFFFFFFF0),
    )[0],
    "stored, but larger": lambda data, entry, header: u32(data, entry + 24, 8000),
    "a header beyond the end": lambda data, entry, header: u32(data, entry + 42, 0xFFFFFF00),
    "a header elsewhere": lambda data, entry, header: u32(data, entry + 42, header + 1),
    "zip64 without its field": zip64_offset,
    "a name that is too long": lambda data, entry, header: struct.pack_into(
        "<H", data, header + 26, 0xFFFF
    ),
    "a wrong checksum": lambda data, entry, header: u32(data, entry + 16, 1),
}


@pytest.mark.parametrize("record", ["archive/data/0", "archive/data.pkl"])
@pytest.mark.parametrize("case", FORGED)
def test_a_forged_directory_is_refused(tmp_path: Path, case: str, record: str) -> None:
    path = save({"w": torch.ones(2)}, tmp_path / "archive.pt")
    with zipfile.ZipFile(path) as archive:
        header = archive.getinfo(record).header_offset
        data = bytearray(path.read_bytes())
        entry = data.index(record.encode(), archive.start_dir) - 46
    FORGED[case](data, entry, header)
    path.write_bytes(data)
    before = list(tmp_path.iterdir())
    with seconds(20), pytest.raises(PtoolsError):
        fix_ckpt(path, tmp_path / "out.pt")
    assert list(tmp_path.iterdir()) == before


def test_an_offset_of_sixty_four_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for offset in (1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        extra = struct.pack("<HHQ", 1, 8, offset)
        name = b"a/data.pkl"
        header = struct.pack("<IHHHHHIIIHH", 0x04034B50, *[0] * 8, len(name), 0) + name
        fields = 0x02014B50, 45, 45, *[0] * 7, len(name), len(extra), 0, 0, 0, 0, 0xFFFFFFFF
        entry = struct.pack("<IHHHHHHIIIHHHHHII", *fields) + name + extra
        end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(entry), len(header), 0)
        path.write_bytes(header + entry + end)
        refused(path)


def test_records_on_the_same_bytes_are_refused_or_harmless(tmp_path: Path) -> None:
    path = save({"a": torch.ones(50), "b": torch.zeros(50)}, tmp_path / "archive.pt")
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("archive/data/0")
        data = bytearray(path.read_bytes())
        entry = data.index(b"archive/data/1", archive.start_dir) - 46
    u32(data, entry + 42, first.header_offset)
    u32(data, entry + 16, first.CRC)
    path.write_bytes(data)
    try:
        loaded = fixed(path)
    except PtoolsError:
        return
    assert torch.equal(loaded["b"], torch.ones(50))


def test_deflated_records_are_read(tmp_path: Path) -> None:
    value = {"module.w": torch.rand(1000)}
    path = write_zip(tmp_path / "a.pt", zipped(value), zipfile.ZIP_DEFLATED)
    assert torch.equal(fixed(path)["w"], value["module.w"])


@pytest.mark.parametrize(
    "forged",
    [
        tensor_pickle(numel=3),
        tensor_pickle(numel=1),
        tensor_pickle(numel=-2),
        tensor_pickle(numel=1 << 62),
        tensor_pickle(numel=1 << 500_000),
        tensor_pickle(size=(3,)),
        tensor_pickle(offset=1),
        tensor_pickle(offset=1 << 62),
        tensor_pickle(offset=-1),
        tensor_pickle(size=(-2,)),
        tensor_pickle(stride=(-1,)),
        tensor_pickle(stride=(2,)),
        tensor_pickle(size=(2, 2), stride=(1, 1)),
        tensor_pickle(size=(2, 2)),
        tensor_pickle(stride=()),
        tensor_pickle(size=(1 << 62, 1 << 62), stride=(0, 0)),
        tensor_pickle(size=(1 << 80,), stride=(0,)),
        tensor_pickle(size=(2,) * 65, stride=(0,) * 65),
        tensor_pickle(storage=b"X\3\0\0\0abcQ"),
        tensor_pickle(storage=b"NQ"),
        tensor_pickle(storage=b"(X\7\0\0\0storagecos\nsystem\nX\1\0\0\x000X\3\0\0\0cpuK\2tQ"),
        tensor_pickle(storage=STORAGE.replace(b"Float", b"Evil")),
        tensor_pickle(storage=STORAGE.replace(b"X\3\0\0\0cpu", b"K\1")),
        tensor_pickle(storage=STORAGE.replace(b"X\1\0\0\x000", b"K\0")),
        tensor_pickle(storage=STORAGE.replace(b"X\1\0\0\x000", b"X\1\0\0\x007")),
        tensor_pickle(storage=STORAGE.replace(b"X\7\0\0\0storage", b"X\6\0\0\0module")),
        b"\x80\x02}X\1\0\0\0w"
        + STORAGE % b"K\2"
        + STORAGE.replace(b"Float", b"Int") % b"K\2"
        + b"\x86s.",
    ],
)
def test_a_tensor_that_does_not_add_up_is_refused(tmp_path: Path, forged: bytes) -> None:
    refused(with_pickle(tmp_path / "a.pt", forged, _0=bytes(8)), safetensors=False)


def test_a_tensor_of_terabytes_in_a_few_bytes_costs_nothing(tmp_path: Path) -> None:
    """It is sound: one number, seen over and over; only safetensors would have to write it out."""
    huge = tensor_pickle(size=(1 << 40,), stride=(0,), numel=2)
    path = with_pickle(tmp_path / "a.pt", huge, _0=bytes(8))
    assert fixed(path)["w"].shape == (1 << 40,)
    assert (tmp_path / "out.pt").stat().st_size < 10_000
    with seconds(5), pytest.raises(PtoolsError, match="free"):
        fix_ckpt(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_many_large_dimensions_are_no_fault(tmp_path: Path) -> None:
    """The product of strides may be larger than any number of elements."""
    value = torch.empty(16, 16, 256, 256, 256, device="meta")
    assert fixed(save({"w": value}, tmp_path / "a.pt"))["w"].shape == value.shape


def test_sizes_that_multiply_beyond_measure_are_refused_at_once(tmp_path: Path) -> None:
    """A million dimensions, or sizes of a million digits: their product alone would take hours."""
    wider, wide = integer(1 << 8_000_000) + b"q\0", integer(1 << 60_000) + b"q\0"
    for many in (b"K\xff" * 100_000, wide + b"h\0" * 10_000, wider + b"h\0" * 1000):
        many = b"(" + many + b"t"
        made = TENSOR % (STORAGE % b"K\2", b"K\0", many, many)
        refused(with_pickle(tmp_path / "a.pt", b"\x80\x02}X\1\0\0\0w" + made + b"s.", _0=bytes(8)))


def test_wrappers_of_wrappers_of_a_tensor_are_refused_or_read_at_once(tmp_path: Path) -> None:
    """Each would lead through all below it, were they not counted."""
    deep = 10_000
    made = TENSOR % (STORAGE % b"K\2", b"K\0", integers((2,)), integers((1,)))
    start = b"ctorch._utils\n_rebuild_parameter\n(" * deep
    data = b"\x80\x02}X\1\0\0\0w" + start + made + b"\x89NtR" * deep + b"s."
    refused(with_pickle(tmp_path / "a.pt", data, _0=bytes(8)))


def test_zip_bombs_are_refused_unread(tmp_path: Path) -> None:
    """Ten gigabytes of zeros, or what claims to be: in the pickle, and in a storage."""
    nbytes = 10 << 30
    packed = b"x" * (nbytes // 1000)
    for record in ("archive/data.pkl", "archive/data/0"):
        path = write_zip(tmp_path / "a.pt", zipped({"w": torch.ones(2)}) | {record: packed})
        data = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            entry = data.index(record.encode(), archive.start_dir) - 46
            start = archive.start_dir
        extra = struct.pack("<HHQ", 1, 8, nbytes)
        u32(data, entry + 24, 0xFFFFFFFF)
        struct.pack_into("<HH", data, entry + 10, zipfile.ZIP_DEFLATED, 0)
        struct.pack_into("<H", data, entry + 30, len(extra))
        data[entry + 46 + len(record) : entry + 46 + len(record)] = extra
        size = struct.unpack_from("<I", data, len(data) - 10)[0]
        struct.pack_into("<II", data, len(data) - 10, size + len(extra), start)
        path.write_bytes(data)
        with zipfile.ZipFile(path) as archive:
            assert archive.getinfo(record).file_size == nbytes
        refused(path)


def test_cycles_are_no_problem(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"w": torch.ones(2)}
    loop["self"] = loop
    loop["list"] = [loop, (loop, [])]
    loop["list"].append(loop["list"])
    state = OrderedDict(module=OrderedDict(w=torch.ones(2)))
    state["module"]["again"] = state
    for value in (loop, state, {"state_dict": loop, "model": loop}):
        with seconds(20):
            path = save(value, tmp_path / "a.pt")
            describe(path)
            fix_ckpt(path, tmp_path / "out.pt", force=True)
            torch.load(tmp_path / "out.pt", weights_only=True)


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/../../b"])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, shard: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = inside / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"w": shard}}))
    refused(path)


SOURCES = {
    "zip": lambda path: save(victim(), path),
    "legacy": lambda path: save(victim(), path, old=True),
    "safetensors": lambda path: save_file(victim()["state_dict"], path),
}


def victim() -> dict[str, Any]:
    weights = {"module.w": torch.arange(6.0).reshape(2, 3), "module.b": torch.ones(2).half()}
    return {
        "state_dict": weights,
        "view": weights["module.w"][1:],
        "epoch": 3,
        "parameter": torch.nn.Parameter(torch.ones(1)),
        "args": pickle.PROTO,
        "sparse": torch.eye(2).to_sparse(),
        "path": Path("a/b"),
    }


def mutant(data: bytes, numbers: random.Random) -> bytes:
    """A few bytes flipped, set, cut out, doubled, or moved."""
    changed = bytearray(data)
    for _ in range(numbers.choice((1, 1, 1, 2, 3, 8))):
        at = numbers.randrange(len(changed))
        length = numbers.choice((1, 1, 2, 4, 8, 40))
        match numbers.randrange(6):
            case 0:
                changed[at] ^= 1 << numbers.randrange(8)
            case 1:
                changed[at : at + length] = numbers.randbytes(length)
            case 2:
                changed[at : at + length] = numbers.choice((b"\0", b"\xff", b"\x7f")) * length
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length]
            case 5:
                other = numbers.randrange(len(changed))
                changed[at : at + length] = changed[other : other + length]
        if not changed:
            return b""
    return bytes(changed)


def remade(data: bytes, numbers: random.Random) -> bytes:
    """A torch file with a mutant of its pickle, and checksums that are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in records if name.endswith("data.pkl"))
    records[name] = mutant(records[name], numbers)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as changed:
        for name, content in records.items():
            changed.writestr(name, content)
    return out.getvalue()


def loads(path: Path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


def survives(path: Path, out: Path, numbers: random.Random) -> bool:
    """Whether a mutant was fixed; all that it may do else is to be refused."""
    options: dict[str, Any] = numbers.choice(
        ({}, {}, {"compact": True}, {"dtype": "float64"}, {"weights_only": True}, {"to": "meta"})
    )
    loaded = loads(path)
    try:
        with seconds(20):
            fix_ckpt(path, out, force=True, **options)
    except PtoolsError:
        return False
    if out.suffix == ".safetensors":
        load_file(out)
    elif loaded or not loads(out):
        torch.load(out, weights_only=True)
    return True


@pytest.mark.parametrize("kind", [*SOURCES, "pickle"])
@pytest.mark.filterwarnings("ignore")
def test_mutants_are_refused_or_fixed(tmp_path: Path, kind: str) -> None:
    suffix = ".safetensors" if kind == "safetensors" else ".pt"
    sound = tmp_path / f"sound{suffix}"
    SOURCES["zip" if kind == "pickle" else kind](sound)
    data, numbers = sound.read_bytes(), random.Random(kind)
    path, out = tmp_path / f"mutant{suffix}", tmp_path / f"out{suffix}"
    fix_ckpt(sound, out)
    before = len(list(tmp_path.iterdir())) + 1
    survivors = 0
    for _ in range(200):
        path.write_bytes((remade if kind == "pickle" else mutant)(data, numbers))
        survivors += survives(path, out, numbers)
        assert len(list(tmp_path.iterdir())) == before
    assert 0 < survivors < 200
    assert "antigravity" not in sys.modules
