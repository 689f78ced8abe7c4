"""What is written: torch files, safetensors, shards, and their names. Other readers judge."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import nn
from torch.utils.serialization import config

from ptools.checkpoint import fix_ckpt
from ptools.errors import PtoolsError, UsageError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.embed = nn.Embedding(50, 4)
        self.head = nn.Linear(4, 50)
        self.head.weight = self.embed.weight


@pytest.fixture
def net(folder: Path) -> Net:
    """A model whose checkpoint, from a GPU and of DataParallel, lies in `net.pth`."""
    torch.manual_seed(0)
    net = Net()
    with mock.patch.object(torch.serialization, "location_tag", lambda _: "cuda:0"):
        torch.save(nn.DataParallel(net).state_dict(), "net.pth")
    return net


@pytest.fixture
def offsets() -> Iterator[None]:
    """Torch computes where storages are, and checks it against the file."""
    with mock.patch.dict("os.environ", TORCH_SERIALIZATION_DEBUG="1"):
        config.load.calculate_storage_offsets = True
        yield
        config.load.calculate_storage_offsets = False


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(found[name]) == bits(tensor), name


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "half": {"dtype": "fp16"},
    "compact": {"compact": True},
    "few": {"keep": ["stem"]},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.usefixtures("offsets")
def test_a_torch_file_loads_in_every_way(net: Net, options: str, mmap: bool, legacy: bool) -> None:
    state = nn.DataParallel(net).state_dict()
    if legacy:
        torch.save(state, "net.pth", _use_new_zipfile_serialization=False)
    fix_ckpt("net.pth", "out.pth", **OPTIONS[options])
    found = torch.load("out.pth", weights_only=True, mmap=mmap)
    wanted = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if options == "half":
        wanted = {n: v.half() if v.is_floating_point() else v for n, v in wanted.items()}
    if options == "few":
        wanted = {n: v for n, v in wanted.items() if n.startswith("stem")}
    assert_same(found, wanted)
    assert list(found) == list(wanted)
    if options != "few":
        assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()


@pytest.mark.usefixtures("offsets")
def test_a_file_that_was_changed_in_place_loads_in_every_way(net: Net) -> None:
    report = fix_ckpt("net.pth", inplace=True)
    assert report.outputs == (Path("net.pth"),)
    for mmap in (False, True):
        assert_same(torch.load("net.pth", weights_only=True, mmap=mmap), net.state_dict())
    assert not fix_ckpt("net.pth", inplace=True).anything


def test_torch_writes_the_same_file(net: Net) -> None:
    """But for the serialization id, which hashes what torch wrote."""
    fix_ckpt("net.pth", "ours.pth", weights_only=True)
    torch.save(torch.load("ours.pth", weights_only=True), "ours.pt")
    ours, theirs = Path("ours.pth").read_bytes(), Path("ours.pt").read_bytes()
    start = ours.index(b"ours/version")
    assert ours[:start] == theirs[:start]


def test_safetensors_are_read_by_safetensors(net: Net) -> None:
    net.stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = nn.DataParallel(net).state_dict()
    state |= {"module.cut": torch.arange(12.0).view(3, 4)[:, 1:3], "module.empty": torch.ones(0, 2)}
    state |= {"module.flag": torch.tensor([True]), "module.half": torch.ones(3).bfloat16()}
    torch.save(state, "net.pth")
    report = fix_ckpt("net.pth", safetensors=True)
    assert report.outputs == (Path("net.cpu.safetensors"),)
    found = load_file("net.cpu.safetensors")
    wanted = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    assert report.aliases == {"head.weight": "embed.weight"}
    assert_same(found | {"head.weight": found["embed.weight"]}, wanted)
    with safe_open("net.cpu.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["head.weight"] == "embed.weight"


def test_safetensors_with_ties_load_into_a_model(net: Net) -> None:
    fix_ckpt("net.pth", "net.safetensors")
    fresh = Net()
    load_model(fresh, "net.safetensors")
    assert_same(fresh.state_dict(), net.state_dict())


def test_safetensors_come_back_with_their_ties_and_order(net: Net) -> None:
    fix_ckpt("net.pth", "net.safetensors")
    report = fix_ckpt("net.safetensors", "back.pt")
    found = torch.load("back.pt", weights_only=True)
    assert_same(found, net.state_dict())
    assert list(found) == list(net.state_dict())
    assert found["head.weight"].data_ptr() == found["embed.weight"].data_ptr()
    assert report.output_format == "torch zip"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.ones(3, dtype=torch.complex128), "complex128"),
        (torch.ones(3, device="meta"), "meta"),
    ],
)
def test_what_safetensors_cannot_hold_is_named(
    folder: Path, tensor: torch.Tensor, kind: str
) -> None:
    torch.save({"a": torch.ones(2), "b": tensor}, "x.pt")
    with pytest.raises(PtoolsError, match=f"cannot hold b: it is {kind}") as error:
        fix_ckpt("x.pt", safetensors=True)
    assert "--drop 'b'" in (error.value.hint or "")
    assert names_in(folder) == ["x.pt"]
    fix_ckpt("x.pt", safetensors=True, drop=["b"])
    assert list(load_file("x.cpu.safetensors")) == ["a"]


@pytest.mark.parametrize("safetensors", [False, True])
def test_shards_hold_everything_once_and_ties_together(net: Net, safetensors: bool) -> None:
    report = fix_ckpt("net.pth", shard_size=500, safetensors=safetensors)
    (index,) = Path("net.cpu").glob("*.index.json")
    found = json.loads(index.read_text())
    files = sorted(set(found["weight_map"].values()))
    assert len(files) > 2
    suffix = "safetensors" if safetensors else "bin"
    assert all(re.fullmatch(rf"\w+-0000\d-of-0000{len(files)}\.{suffix}", name) for name in files)
    assert set(report.outputs) == {Path("net.cpu") / name for name in [*files, index.name]}
    state: dict[str, torch.Tensor] = {}
    for name in files:
        path = Path("net.cpu") / name
        part = load_file(path) if safetensors else torch.load(path, weights_only=True)
        assert all(found["weight_map"][key] == name for key in part)
        state |= part
        sizes = {tensor.data_ptr(): tensor.nbytes for tensor in part.values()}
        assert len(sizes) == 1 or sum(sizes.values()) <= 500
    assert found["weight_map"]["head.weight"] == found["weight_map"]["embed.weight"]
    assert_same(state | {"head.weight": state["embed.weight"]}, net.state_dict())


@pytest.mark.parametrize("safetensors", [False, True])
def test_shards_are_read_and_joined_again(net: Net, safetensors: bool) -> None:
    fix_ckpt("net.pth", "shards", shard_size=500, safetensors=safetensors)
    report = fix_ckpt("shards", "joined.pt")
    assert_same(torch.load("joined.pt", weights_only=True), net.state_dict())
    assert report.format.startswith("sharded")
    fix_ckpt("shards", "joined.safetensors")
    load_model(net, "joined.safetensors")


def test_the_hash_is_what_torch_hub_checks(net: Net, tmp_path: Path) -> None:
    (path,) = fix_ckpt("net.pth", hash=True).outputs
    assert re.fullmatch(r"net\.cpu-[0-9a-f]{8}\.pth", path.name)
    url = path.resolve().as_uri()
    found = torch.hub.load_state_dict_from_url(
        url, str(tmp_path / "hub"), progress=False, check_hash=True, weights_only=True
    )
    assert_same(found, net.state_dict())
    with pytest.raises(UsageError, match="already exists"):
        fix_ckpt("net.pth", hash=True)


@pytest.mark.parametrize(
    ("source", "options", "output"),
    [
        ("net.pth", {}, "net.cpu.pth"),
        ("net.pth", {"to": "cuda:1"}, "net.cuda1.pth"),
        ("net.pth", {"to": "keep"}, "net.fixed.pth"),
        ("net.pth", {"safetensors": True}, "net.cpu.safetensors"),
        ("epoch=3.loss=0.5.ckpt", {}, "epoch=3.loss=0.5.cpu.ckpt"),
        ("model.pth.tar", {}, "model.cpu.pth"),
        ("weights", {}, "weights.cpu.pt"),
        ("model.pth.tar", {"shard_size": 1000}, "model.cpu"),
    ],
)
def test_the_output_has_a_name_of_its_own(
    net: Net, folder: Path, source: str, options: dict[str, Any], output: str
) -> None:
    Path("net.pth").rename(source)
    report = fix_ckpt(source, **options)
    assert names_in(folder) == sorted([source, output])
    first = report.outputs[0]
    assert Path(output) in (first, first.parent)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "net.pth"}, "is the checkpoint itself"),
        ({"output": "sub/../net.pth"}, "is the checkpoint itself"),
        ({"output": "taken.pth"}, "already exists"),
        ({"output": "absent/net.pth"}, "there is no folder"),
        ({"output": "sub"}, "is a folder"),
        ({"output": "x.pth", "inplace": True}, "leave out -o"),
        ({"shard_size": 9, "inplace": True}, "leave out -o and --shard-size"),
        ({"safetensors": True, "inplace": True}, "--inplace keeps the format"),
        ({"safetensors": True, "output": "x.pth"}, "would look like a torch file"),
        ({"shard_size": 0}, "a shard of no bytes"),
        ({"shard_size": 500, "output": "sub"}, "already exists"),
    ],
)
def test_what_must_not_be_written_is_refused(
    net: Net, folder: Path, options: dict[str, Any], message: str
) -> None:
    Path("sub").mkdir()
    Path("taken.pth").write_bytes(b"mine")
    before = Path("net.pth").read_bytes()
    with pytest.raises(UsageError, match=message):
        fix_ckpt("net.pth", **options)
    assert names_in(folder) == ["net.pth", "sub", "taken.pth"]
    assert Path("net.pth").read_bytes() == before
    assert Path("taken.pth").read_bytes() == b"mine"


def test_force_replaces_a_file(net: Net) -> None:
    Path("taken.pth").write_bytes(b"old")
    fix_ckpt("net.pth", "taken.pth", force=True)
    assert_same(torch.load("taken.pth", weights_only=True), net.state_dict())


def test_the_line_that_loads_it_does(net: Net) -> None:
    torch.save({"model": nn.DataParallel(net).state_dict(), "epoch": 1}, "nested.pth")
    for options in ({}, {"weights_only": True}):
        report = fix_ckpt("nested.pth", "out.pth", force=True, **options)  # type: ignore[arg-type]
        model = Net()
        exec(report.load, {"torch": torch, "model": model})
        assert_same(model.state_dict(), net.state_dict())
