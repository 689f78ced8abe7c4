"""What becomes of the content: values, places, entries, dtypes. Torch itself is the judge."""

import argparse
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ptools.checkpoint import fix_ckpt
from ptools.errors import PtoolsError, UsageError


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU())
        self.embed = nn.Embedding(5, width)
        self.head = nn.Linear(width, 5)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.stem(x).mean((2, 3)))


@contextmanager
def saved_on(place: str) -> Iterator[None]:
    """What is saved here says that it was there."""
    with mock.patch.object(torch.serialization, "location_tag", lambda _: place):
        yield


def trained(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer


def flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves in order, with the way to them."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from flat(below, f"{at}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            yield from flat(below, f"{at}[{index}]")
    else:
        yield at, value


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def sharing(values: list[Any]) -> list[int]:
    """For each tensor, which is the first that lives in the same memory."""
    places = [v.untyped_storage().data_ptr() for v in values if isinstance(v, torch.Tensor)]
    return [places.index(place) for place in places]


def assert_same(found: Any, wanted: Any) -> None:
    ours, theirs = dict(flat(found)), dict(flat(wanted))
    assert list(ours) == list(theirs)
    for at, value in theirs.items():
        assert type(ours[at]) is type(value), at
        if isinstance(value, torch.Tensor):
            assert (ours[at].dtype, ours[at].shape) == (value.dtype, value.shape), at
            assert ours[at].stride() == value.stride(), at
            assert bits(ours[at]) == bits(value), at
        else:
            assert ours[at] == value, at
    assert sharing(list(ours.values())) == sharing(list(theirs.values()))


def loaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def training(folder: Path, net: Net) -> Path:
    """What a training script saves, from the second GPU."""
    optimizer, average = trained(net), AveragedModel(net)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    with saved_on("cuda:1"):
        torch.save(
            {
                "epoch": 3,
                "model": nn.DataParallel(net).state_dict(),
                "ema": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": schedule.state_dict(),
                "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/x")),
                "best": np.float64(0.5),
                "rng": torch.get_rng_state(),
            },
            "train.pth.tar",
        )
    return Path("train.pth.tar")


def test_a_training_checkpoint_loads_anywhere_and_is_the_same(training: Path, net: Net) -> None:
    with pytest.raises(Exception, match=r"weights_only|CUDA"):
        loaded(training)
    before = training.read_bytes()
    report = fix_ckpt(training)
    assert training.read_bytes() == before
    assert report.outputs == (Path("train.cpu.pth"),)
    found = loaded(report.outputs[0])
    wanted = torch.load(training, map_location="cpu", weights_only=False)
    wanted["model"] = net.state_dict()
    wanted["ema"] = {n.removeprefix("module."): v for n, v in wanted["ema"].items() if "." in n}
    wanted["args"], wanted["best"] = {"lr": 0.1, "out": "/x"}, 0.5
    assert_same({**found, "model": None}, {**wanted, "model": None})
    assert_same(found["model"], wanted["model"])
    assert found["model"]._metadata == net.state_dict()._metadata
    net.load_state_dict(found["model"])
    fresh = torch.optim.AdamW(Net().parameters())
    fresh.load_state_dict(found["optimizer"])
    assert_same(fresh.state_dict(), wanted["optimizer"])


def test_the_report_tells_what_was_done(training: Path) -> None:
    report = fix_ckpt(training, dry_run=True)
    assert (report.containers, report.taken, report.tensors) == (("model", "ema"), "model", 9 + 1)
    assert [(r.old, r.new, r.count) for r in report.renamed] == [("module.", "", 20)]
    assert set(report.locations) == {("cuda:1", "cpu")}
    assert {c.where: c.became for c in report.changes} == {
        "args": "dict",
        "args.out": "text",
        "best": "float",
    }
    assert report.left_out == ("ema.n_averaged",)
    assert report.aliases == {"head.weight": "embed.weight"}
    assert report.anything and not report.outputs


def test_a_dry_run_writes_nothing_and_says_the_same(training: Path, folder: Path) -> None:
    dry = fix_ckpt(training, dry_run=True)
    assert [path.name for path in folder.iterdir()] == ["train.pth.tar"]
    done = fix_ckpt(training)
    skip = ("outputs", "output_bytes", "checked")
    assert {k: v for k, v in dry.to_dict().items() if k not in skip} == {
        k: v for k, v in done.to_dict().items() if k not in skip
    }


def test_weights_only_leaves_the_state_dict_alone(training: Path, net: Net) -> None:
    report = fix_ckpt(training, weights_only=True)
    found = loaded(report.outputs[0])
    assert_same(found, net.state_dict())
    assert found._metadata == net.state_dict()._metadata
    assert report.left_out == ("epoch", "ema", "optimizer", "scheduler", "args", "best", "rng")
    assert report.load == "model.load_state_dict(torch.load('train.cpu.pth', weights_only=True))"


def test_what_is_left_out_is_not_told_as_converted(training: Path) -> None:
    report = fix_ckpt(training, weights_only=True, dry_run=True)
    assert not report.changes
    assert [renaming.count for renaming in report.renamed] == [10]
    report = fix_ckpt(training, drop=["args"], dry_run=True)
    assert [change.where for change in report.changes] == ["best"]


def test_ema_takes_the_moving_average(training: Path, net: Net) -> None:
    report = fix_ckpt(training, ema=True)
    found = loaded(report.outputs[0])
    assert_same(found, net.state_dict())
    assert report.taken == "ema"
    assert "n_averaged" not in found


def test_ema_of_a_file_without_one_is_an_error(folder: Path, net: Net) -> None:
    torch.save(net.state_dict(), "plain.pt")
    with pytest.raises(UsageError, match="no EMA weights") as error:
        fix_ckpt("plain.pt", ema=True)
    assert error.value.hint == "the file is one state_dict: leave out --ema"
    torch.save({"model": net.state_dict(), "epoch": 1}, "nested.pt")
    with pytest.raises(UsageError) as error:
        fix_ckpt("nested.pt", ema=True)
    assert error.value.hint == "there is model"


@pytest.mark.parametrize(
    "names",
    ["params params_ema", "state_dict state_dict_ema", "student teacher", "model model_ema"],
)
def test_the_usual_pairs_are_told_apart(folder: Path, net: Net, names: str) -> None:
    usual, average = names.split()
    torch.save({average: Net(6).state_dict(), usual: net.state_dict()}, "pair.pt")
    assert fix_ckpt("pair.pt", dry_run=True).taken == usual
    assert fix_ckpt("pair.pt", dry_run=True, ema=True).taken == average
    fix_ckpt("pair.pt", "usual.pt", weights_only=True)
    assert_same(loaded(Path("usual.pt")), net.state_dict())


def test_entries_are_kept_and_dropped_by_name(training: Path) -> None:
    fix_ckpt(training, "a.pt", drop=["optimizer", "sched*"])
    assert list(loaded(Path("a.pt"))) == ["epoch", "model", "ema", "args", "best", "rng"]
    fix_ckpt(training, "b.pt", keep=["model", "epoch"])
    assert list(loaded(Path("b.pt"))) == ["epoch", "model"]


def test_the_weights_taken_are_among_those_kept(training: Path, net: Net) -> None:
    report = fix_ckpt(training, "a.pt", keep=["ema"])
    assert report.taken == "ema"
    assert report.load.endswith("['ema'])")
    assert_same(loaded(Path("a.pt")), {"ema": net.state_dict()})
    report = fix_ckpt(training, "b.pt", drop=["model"], weights_only=True)
    assert report.taken == "ema"
    assert_same(loaded(Path("b.pt")), net.state_dict())


@pytest.mark.parametrize("drop", [["*"], ["model", "ema"]])
def test_to_leave_out_all_weights_is_an_error(
    training: Path, folder: Path, drop: list[str]
) -> None:
    with pytest.raises(UsageError, match="leave no weights"):
        fix_ckpt(training, drop=drop)
    assert [path.name for path in folder.iterdir()] == ["train.pth.tar"]


def test_tensors_are_kept_and_dropped_by_name(folder: Path, net: Net) -> None:
    torch.save(net.state_dict(), "net.pt")
    report = fix_ckpt("net.pt", "a.pt", keep=["stem", "head.b*"], drop=["*.num_batches_tracked"])
    wanted = [n for n in net.state_dict() if n.startswith("stem") or n == "head.bias"]
    wanted.remove("stem.1.num_batches_tracked")
    found = loaded(Path("a.pt"))
    assert list(found) == wanted
    assert set(report.left_out) == set(net.state_dict()) - set(wanted)
    assert_same(found, {name: net.state_dict()[name] for name in wanted})


def test_nothing_to_fix_writes_nothing_unless_an_output_is_named(folder: Path, net: Net) -> None:
    torch.save(net.state_dict(), "net.pt")
    report = fix_ckpt("net.pt")
    assert not report.anything and not report.outputs
    assert [path.name for path in folder.iterdir()] == ["net.pt"]
    report = fix_ckpt("net.pt", "copy.pt")
    assert not report.anything and report.outputs
    assert_same(loaded(Path("copy.pt")), net.state_dict())


@pytest.mark.parametrize("place", ["cuda:0", "cuda:13", "mps", "xpu:0", "npu:0", "xla:0", "hpu"])
@pytest.mark.parametrize("legacy", [False, True])
def test_tags_of_any_device_become_cpu(folder: Path, net: Net, place: str, legacy: bool) -> None:
    state = {"w": torch.arange(6.0).view(2, 3).t(), "device": f"{place}", "n": torch.tensor(3)}
    with saved_on(place):
        torch.save(state, "x.pt", _use_new_zipfile_serialization=not legacy)
    fix_ckpt("x.pt")
    assert_same(loaded(Path("x.cpu.pt")), state)


def test_a_checkpoint_can_be_moved_to_a_gpu_and_back(folder: Path, net: Net) -> None:
    torch.save(net.state_dict(), "net.pt")
    report = fix_ckpt("net.pt", to="cuda:1")
    assert report.outputs == (Path("net.cuda1.pt"),)
    tags: list[str] = []
    torch.load("net.cuda1.pt", map_location=lambda storage, tag: tags.append(tag) or storage)
    assert set(tags) == {"cuda:1"}
    fix_ckpt("net.cuda1.pt", "back.pt")
    assert_same(loaded(Path("back.pt")), net.state_dict())


def test_places_are_kept_on_demand(training: Path) -> None:
    fix_ckpt(training, to="keep")
    tags = set()
    torch.load("train.fixed.pth", map_location=lambda storage, tag: tags.add(tag) or storage)
    assert tags == {"cuda:1"}


def test_meta_keeps_shapes_and_no_data(training: Path, net: Net) -> None:
    report = fix_ckpt(training, to="meta", weights_only=True)
    found = loaded(report.outputs[0])
    assert all(tensor.is_meta for tensor in found.values())
    for name, tensor in net.state_dict().items():
        assert (found[name].shape, found[name].stride()) == (tensor.shape, tensor.stride())
        assert found[name].dtype == tensor.dtype
    assert report.output_bytes < 4000
    Net().load_state_dict(found, assign=True)


def test_an_unknown_place_is_an_error(folder: Path, net: Net) -> None:
    torch.save(net.state_dict(), "net.pt")
    with pytest.raises(UsageError, match="'gpu' is no place"):
        fix_ckpt("net.pt", to="gpu")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "float64", "torch.bfloat16"])
def test_floats_are_cast_as_torch_casts_them(folder: Path, net: Net, dtype: str) -> None:
    wild = torch.tensor([float("nan"), -float("inf"), 1e30, -0.0, 1e-42, 3.14159])
    state = {
        **net.state_dict(),
        "wild": wild,
        "int8": torch.arange(4, dtype=torch.int8),
        "half": torch.ones(3).half(),
        "complex": torch.ones(2, dtype=torch.complex64),
        "mask": torch.tensor([True, False]),
    }
    torch.save(state, "x.pt")
    report = fix_ckpt("x.pt", "y.pt", dtype=dtype)
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16, "float64": torch.float64}
    to = wanted.get(dtype, torch.bfloat16)
    floats = {n: v.to(to) if v.is_floating_point() else v for n, v in state.items()}
    floats["head.weight"] = floats["embed.weight"]
    assert_same(loaded(Path("y.pt")), floats)
    assert all(new == str(to).removeprefix("torch.") for _, new in report.dtypes)
    with pytest.raises(UsageError, match="'int8' is no dtype"):
        fix_ckpt("x.pt", "z.pt", dtype="int8")


def test_compact_cuts_off_what_no_tensor_sees(folder: Path) -> None:
    big = torch.randn(2000, 300)
    state = {"a": big[:5], "b": big[3:8].t(), "alone": torch.ones(3), "empty": big[:0]}
    torch.save(state, "views.pt")
    report = fix_ckpt("views.pt", "small.pt", compact=True)
    found = loaded(Path("small.pt"))
    assert_same({**found, "empty": 0}, {**state, "empty": 0})
    assert found["empty"].shape == (0, 300)
    assert found["a"].untyped_storage().nbytes() == 8 * 300 * 4
    assert report.saved_bytes == 1992 * 300 * 4
    assert report.output_bytes < 12_000


def test_a_file_that_drags_memory_along_is_told_to_be_compacted(folder: Path) -> None:
    torch.save({"x": torch.randn(3000, 300)[:5]}, "views.pt")
    (note,) = fix_ckpt("views.pt").notes
    assert note == "3.43 MiB of it is memory that no tensor sees: --compact cuts it off"
    assert not fix_ckpt("views.pt", "small.pt", compact=True).notes
    assert not fix_ckpt("small.pt").notes


@pytest.mark.parametrize("legacy", [False, True])
def test_layouts_and_dtypes_of_all_kinds_stay(folder: Path, legacy: bool) -> None:
    state = {
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4).t(),
        "expanded": torch.randn(1, 4).expand(3, 4),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "complex": torch.randn(3, dtype=torch.complex64),
        "parameter": nn.Parameter(torch.randn(2)),
    }
    with saved_on("cuda:0"):
        torch.save(state, "x.pt", _use_new_zipfile_serialization=not legacy)
    fix_ckpt("x.pt", "y.pt")
    assert_same(loaded(Path("y.pt")), state)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sparse_and_quantized_tensors_stay(folder: Path) -> None:
    state = {
        "coo": torch.eye(4).to_sparse(),
        "csr": torch.eye(4).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, torch.qint8),
        "dense": torch.ones(3),
    }
    with saved_on("cuda:0"):
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, "x.pt")
    fix_ckpt("x.pt", "y.pt")
    found = loaded(Path("y.pt"))
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert (found[name].layout, found[name].dtype) == (tensor.layout, tensor.dtype)
    for name in ("coo", "csr"):
        assert torch.equal(found[name].to_dense(), torch.eye(4))
    assert torch.equal(found["quantized"], state["quantized"])


@pytest.mark.parametrize("value", [[torch.ones(2), torch.zeros(3)], torch.ones(3)])
def test_tensors_without_names_are_moved_too(folder: Path, value: Any) -> None:
    with saved_on("cuda:0"):
        torch.save(value, "x.pt")
    report = fix_ckpt("x.pt")
    assert report.taken is None
    assert_same(loaded(Path("x.cpu.pt")), value)
    with pytest.raises(PtoolsError, match="holds no weights"):
        fix_ckpt("x.pt", weights_only=True, force=True)


def test_a_file_without_tensors_is_an_error(folder: Path) -> None:
    torch.save({"epoch": 1}, "x.pt")
    with pytest.raises(PtoolsError, match=r"x\.pt holds no tensors"):
        fix_ckpt("x.pt")


def test_what_a_module_refuses_is_not_left_in_its_state_dict(folder: Path, net: Net) -> None:
    state = {**net.state_dict(), "epoch": 3, "head._extra_state": {"scale": 2}}
    torch.save(state, "x.pt")
    assert list(loaded(Path("x.pt"))) == list(state)
    report = fix_ckpt("x.pt", "y.pt", weights_only=True)
    assert report.left_out == ("epoch",)
    assert list(loaded(Path("y.pt"))) == [name for name in state if name != "epoch"]
    report = fix_ckpt("x.pt", "z.pt", model=net, drop=["head._extra_state"])
    assert set(report.left_out) == {"epoch", "head._extra_state"}
    net.load_state_dict(loaded(Path("z.pt")))


def test_a_dtype_is_that_of_the_weights_alone(folder: Path) -> None:
    state = {"w": torch.ones(2)}
    moments = {0: {"exp_avg": torch.zeros(2)}}
    torch.save({"model": state, "ema": state, "optimizer": {"state": moments}}, "x.pt")
    fix_ckpt("x.pt", "y.pt", dtype="bf16")
    found = torch.load("y.pt", weights_only=True)
    assert found["model"]["w"].dtype is found["ema"]["w"].dtype is torch.bfloat16
    assert found["optimizer"]["state"][0]["exp_avg"].dtype is torch.float32


def test_a_dtype_goes_with_meta(folder: Path) -> None:
    torch.save({"w": torch.ones(2)}, "x.pt")
    fix_ckpt("x.pt", "y.pt", dtype="bf16", to="meta")
    found = torch.load("y.pt", weights_only=True)["w"]
    assert (found.dtype, found.device.type) == (torch.bfloat16, "meta")
