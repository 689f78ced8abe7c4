import io
import pickle
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from trees import write_tree

from ptools.checkpoint.data.content import PIECE
from ptools.checkpoint.errors import CorruptCheckpoint, NotACheckpoint
from ptools.checkpoint.formats.legacy import MAGIC_NUMBER, read_legacy
from ptools.checkpoint.pickles.nodes import storages
from ptools.checkpoint.pickles.tensors import tensors_below
from ptools.errors import PtoolsError

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32),
    *(torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128),
]


def save(value: Any, path: Path) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def by_ptools(path: Path) -> Any:
    out = path.with_suffix(".zip.pt")
    out.unlink(missing_ok=True)
    write_tree(read_legacy(path).root, out)
    return torch.load(out, weights_only=True)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours.dtype, ours.shape, ours.stride(), ours.storage_offset()) == (
        theirs.dtype,
        theirs.shape,
        theirs.stride(),
        theirs.storage_offset(),
    )
    assert bytes(ours.untyped_storage()) == bytes(theirs.untyped_storage())


def old_storage(key: str, kind: str, numel: int, view: Any, location: str = "cpu") -> Any:
    """A mark for `write_old`: the persistent id of a storage, as old torch wrote it."""

    class Marked:
        identifier = ("storage", getattr(torch, kind), key, location, numel, view)

    return Marked()


def write_old(path: Path, value: Any, contents: dict[str, tuple[int, bytes]]) -> Path:
    """A file as old versions of torch wrote it, for what the present one does not write."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return getattr(item, "identifier", None)

    out = io.BytesIO()
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    for part in (MAGIC_NUMBER, 1001, facts):
        pickle.dump(part, out, protocol=2)
    Pickler(out, protocol=2).dump(value)
    pickle.dump(list(contents), out, protocol=2)
    for numel, data in contents.values():
        out.write(struct.pack("<q", numel) + data)
    path.write_bytes(out.getvalue())
    return path


class Rebuilt:
    """Pickles as the call of old torch that makes a tensor."""

    def __init__(self, storage: Any, *numbers: Any) -> None:
        self.arguments = storage, *numbers

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor, self.arguments


def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path) -> None:
    value = OrderedDict(
        (str(dtype), torch.randint(0, 2, (5 * dtype.itemsize,), dtype=torch.uint8).view(dtype))
        for dtype in DTYPES
    )
    path = save(value, tmp_path / "old.pt")
    ours, theirs = by_ptools(path), torch.load(path, weights_only=True)
    assert list(ours) == list(theirs) == list(value)
    for name in theirs:
        assert_same(ours[name], theirs[name])
    checkpoint = read_legacy(path)
    assert (checkpoint.format, checkpoint.files, checkpoint.notes) == ("legacy torch", (path,), [])


def test_shared_memory_stays_shared(tmp_path: Path) -> None:
    whole = torch.rand(6, 4)
    value = {
        "w": whole,
        "row": whole[2],
        "t": whole.t(),
        "other": torch.rand(3),
        "empty": whole[:0],
    }
    ours = by_ptools(save(value, tmp_path / "old.pt"))
    for name, tensor in value.items():
        assert_same(ours[name], tensor)
    places = {ours[name].untyped_storage().data_ptr() for name in ("w", "row", "t")}
    assert len(places) == 1


def test_everything_around_the_tensors_is_kept(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    value = {"epoch": 3, "list": [1.5, None, (True, "text")], "w": parameter}
    ours = by_ptools(save(value, tmp_path / "old.pt"))
    assert isinstance(ours["w"], torch.nn.Parameter)
    assert ours["w"].equal(parameter)
    assert {**ours, "w": 0} == {**value, "w": 0}


def test_the_locations_are_those_of_the_file(tmp_path: Path) -> None:
    with mock.patch.object(torch.serialization, "location_tag", lambda storage: "cuda:1"):
        path = save([torch.ones(2)], tmp_path / "old.pt")
    assert [storage.location for storage in storages(read_legacy(path).root)] == ["cuda:1"]


def test_old_cuda_storages_are_read(tmp_path: Path) -> None:
    with mock.patch.object(torch.serialization, "location_tag", lambda storage: "cuda:0"):
        path = save([torch.arange(3.0)], tmp_path / "old.pt")
    data = path.read_bytes()
    assert data.count(b"ctorch\nFloatStorage\n") == 1
    path.write_bytes(data.replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n"))
    root = read_legacy(path).root
    for storage in storages(root):
        storage.location = "cpu"
    out = tmp_path / "new.pt"
    write_tree(root, out)
    assert torch.load(out, weights_only=True)[0].tolist() == [0, 1, 2]


def test_views_of_a_storage_share_its_memory(tmp_path: Path) -> None:
    """Up to torch 0.4 a part of a storage was a storage."""
    data = torch.arange(10.0).numpy().tobytes()
    part = old_storage("7", "FloatStorage", 10, ("8", 4, 5))
    value = {
        "whole": Rebuilt(old_storage("7", "FloatStorage", 10, None), 0, (2, 5), (5, 1)),
        "part": Rebuilt(part, 1, (2, 2), (2, 1)),
        "again": Rebuilt(part, 0, (5,), (1,)),
    }
    path = write_old(tmp_path / "old.pt", value, {"7": (10, data)})
    theirs = torch.load(path, weights_only=False)
    ours = by_ptools(path)
    assert {name: tensor.tolist() for name, tensor in ours.items()} == {
        name: tensor.tolist() for name, tensor in theirs.items()
    }
    ours["whole"].zero_()
    assert not ours["part"].any() and not ours["again"].any()


def test_the_source_of_a_class_beside_it_is_left_out(tmp_path: Path) -> None:
    class Marked:
        identifier = ("module", OrderedDict, "models/net.py", "class Net: ...")

    path = write_old(tmp_path / "old.pt", {"class": Marked()}, {})
    (_, node), *_ = read_legacy(path).root.pairs
    assert node.path == "collections.OrderedDict"


def test_ordered_dicts_of_python_2_have_their_entries(tmp_path: Path) -> None:
    class Python2:
        def __reduce__(self) -> Any:
            return OrderedDict, ([["b", 1], ["a", 2]],)

    path = write_old(tmp_path / "old.pt", Python2(), {})
    assert [(str(key), value) for key, value in read_legacy(path).root.pairs] == [
        ("b", 1),
        ("a", 2),
    ]
    assert by_ptools(path) == OrderedDict(b=1, a=2)


def test_a_file_that_is_cut_short_says_how_much_is_missing(tmp_path: Path) -> None:
    path = save([torch.rand(100), torch.rand(50, dtype=torch.float64)], tmp_path / "old.pt")
    data = path.read_bytes()
    for missing in (1, 150, 8 + 400, 8 + 400 + 8 + 400):
        path.write_bytes(data[:-missing])
        with pytest.raises(CorruptCheckpoint, match=f"lacks its last {missing} bytes"):
            read_legacy(path)


def test_every_shorter_file_and_every_changed_byte_is_refused_or_read(tmp_path: Path) -> None:
    path = save({"w": torch.rand(3), "n": [1, "text", 2.5]}, tmp_path / "old.pt")
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(PtoolsError):
            read_legacy(path)
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :])
        try:
            list(tensors_below(read_legacy(path).root))
        except PtoolsError:
            continue


def test_what_follows_the_checkpoint_is_noted(tmp_path: Path) -> None:
    path = save(torch.ones(2), tmp_path / "old.pt")
    first = path.stat().st_size
    with path.open("ab") as file:
        torch.save(torch.zeros(3), file, _use_new_zipfile_serialization=False)
    rest = path.stat().st_size - first
    assert by_ptools(path).tolist() == [1, 1]
    [note] = read_legacy(path).notes
    assert note.startswith(f"{rest} bytes follow")


def test_a_plain_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(NotACheckpoint, match="is a pickle, but not one"):
        read_legacy(path)


@pytest.mark.parametrize(
    ("identifier", "contents"),
    [
        (("storage", torch.FloatStorage, "0", "cpu", 2, None), {"0": (3, bytes(12))}),
        (("storage", torch.FloatStorage, "0", "cpu", 2, None), {"1": (2, bytes(8))}),
        (("storage", torch.FloatStorage, "0", "cpu", 2, None), {}),
        (("storage", torch.FloatStorage, "0", "cpu", -2, None), {"0": (-2, b"")}),
        (("storage", torch.FloatStorage, "0", "cpu", 1 << 70, None), {"0": (2, bytes(8))}),
        (("storage", torch.FloatStorage, "0", "cpu", 2, ("1", 1, 2)), {"0": (2, bytes(8))}),
        (("storage", torch.FloatStorage, "0", "cpu", 2, ("1", -1, 2)), {"0": (2, bytes(8))}),
        (("storage", OrderedDict, "0", "cpu", 2, None), {"0": (2, bytes(8))}),
        (("storage", torch.FloatStorage, 0, "cpu", 2, None), {"0": (2, bytes(8))}),
        ("storage", {}),
    ],
)
def test_storages_that_do_not_add_up_are_refused(
    tmp_path: Path, identifier: Any, contents: dict[str, tuple[int, bytes]]
) -> None:
    marked = type("Marked", (), {"identifier": identifier})()
    with pytest.raises(CorruptCheckpoint):
        read_legacy(write_old(tmp_path / "old.pt", [marked], contents))


def test_a_length_that_lies_costs_no_memory(tmp_path: Path) -> None:
    path = save(torch.ones(3), tmp_path / "old.pt")
    data = path.read_bytes()
    front = data.index(b".", data.index(b"little_endian")) + 1
    for lie in (
        b"\x80\x02B\xff\xff\xff\xff",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f",
        b"\x80\x02Vx",
    ):
        path.write_bytes(data[:front] + lie + bytes(4 * PIECE))
        tracemalloc.start()
        with pytest.raises(CorruptCheckpoint):
            read_legacy(path)
        assert tracemalloc.get_traced_memory()[1] < 20 * PIECE
        tracemalloc.stop()


def test_the_weights_are_not_read(tmp_path: Path) -> None:
    path = save({"w": torch.zeros(16 * PIECE, dtype=torch.uint8)}, tmp_path / "old.pt")
    tracemalloc.start()
    root = read_legacy(path).root
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < PIECE
    [storage] = storages(root)
    assert storage.content.offset + storage.nbytes == path.stat().st_size
