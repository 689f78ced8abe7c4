import json
import math
import subprocess
import sys
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from trees import write_tree

from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.look.comparing import Difference
from ptools.checkpoint.look.diff import CheckpointDiff, diff_checkpoints
from ptools.checkpoint.look.pages import diff_page
from ptools.checkpoint.pickles.nodes import List


def compared(folder: Path, first: Any, second: Any, **options: Any) -> CheckpointDiff:
    torch.save(first, folder / "a.pt")
    torch.save(second, folder / "b.pt", **options)
    diff = diff_checkpoints(folder / "a.pt", folder / "b.pt")
    assert json.loads(json.dumps(diff.to_dict(), allow_nan=False))["equal"] == diff.equal
    return diff


def verdict(diff: CheckpointDiff) -> str:
    return diff_page(diff).splitlines()[-1].replace(str(diff.first.parent) + "/", "")


def values(diff: CheckpointDiff) -> dict[str, Difference | None]:
    return {each.name: each.values for each in diff.different}


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict()


def test_equal_files_are_equal_in_any_format(tmp_path: Path) -> None:
    diff = compared(tmp_path, state(), state(), _use_new_zipfile_serialization=False)
    assert diff.equal
    assert verdict(diff) == "equal: 7 tensors, bit for bit"
    safetensors.torch.save_file(state(), tmp_path / "c.safetensors")
    assert diff_checkpoints(tmp_path / "a.pt", tmp_path / "c.safetensors").equal


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "complex64"])
def test_numbers_that_differ_are_measured_as_torch_does(tmp_path: Path, dtype: str) -> None:
    torch.manual_seed(1)
    a = torch.randn(300, 1000, dtype=torch.float64).to(getattr(torch, dtype))  # several pieces
    b = a.clone()
    b[1, 2] += 0.5
    b[299, 999] -= 2
    diff = compared(tmp_path, {"w": a, "v": a}, {"w": b, "v": a.clone()})
    wide = torch.complex128 if a.is_complex() else torch.float64
    gap = (a.to(wide) - b.to(wide)).abs().max().item()
    [found] = values(diff).values()
    assert found is not None
    assert (found.count, found.max_abs, found.not_finite) == (2, gap, 0)
    assert found.relative == pytest.approx(gap / a.to(wide).abs().max().item())
    assert verdict(diff).startswith(f"differ: 1 of 2 tensors, the largest by {gap:.3g} (w)")


def test_integers_booleans_and_float8_are_compared(tmp_path: Path) -> None:
    first = {"i": torch.arange(5), "b": torch.tensor([True, False])}
    first["f"] = torch.ones(4).to(torch.float8_e4m3fn)
    second = {"i": torch.arange(5) * 2, "b": torch.tensor([True, True])}
    second["f"] = torch.tensor([1, 1, 1, 2.0]).to(torch.float8_e4m3fn)
    found = values(compared(tmp_path, first, second))
    assert found == {
        "i": Difference(4, 4, 1),
        "b": Difference(1, 1, 1),
        "f": Difference(1, 1, 1),
    }


def test_bits_count_where_values_do_not_tell(tmp_path: Path) -> None:
    first = {"zero": torch.tensor([0.0]), "nan": torch.tensor([math.nan, 1])}
    second = {"zero": torch.tensor([-0.0]), "nan": torch.tensor([math.nan, math.inf])}
    found = values(compared(tmp_path, first, second))
    assert found["zero"] == Difference(1, 0, None)
    assert found["nan"] == Difference(1, None, None, 1)
    assert compared(tmp_path, first, first).equal


def test_other_dtypes_are_compared_by_value(tmp_path: Path) -> None:
    first = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0, 0.1])}
    second = {name: tensor.bfloat16() for name, tensor in first.items()}
    diff = compared(tmp_path, first, second)
    gap = abs(first["b"].double() - second["b"].double()).max().item()
    found = values(diff)
    assert found["a"] is None
    assert found["b"] is not None and found["b"].max_abs == gap
    assert not diff.equal


def test_the_order_in_memory_does_not_count(tmp_path: Path) -> None:
    a, b = torch.randn(4, 5, 6, 7), torch.randn(40, 30)
    large = torch.randn(100, 100)
    first = {"a": a, "b": b.t().contiguous(), "c": large[3:5], "e": torch.ones(1).expand(9)}
    second = {"a": a.to(memory_format=torch.channels_last), "b": b.t(), "c": large[3:5].clone()}
    second["e"] = torch.ones(9)
    assert compared(tmp_path, first, second).equal
    second["a"][1, 2, 3, 4] += 1
    [found] = values(compared(tmp_path, first, second)).values()
    assert found is not None and found.count == 1


def test_expanded_tensors_take_no_time(tmp_path: Path) -> None:
    first, second = torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])
    wide = [{"x": tensor.expand(2, 10**12)} for tensor in (first, second)]
    assert compared(tmp_path, wide[0], wide[0]).equal
    assert values(compared(tmp_path, *wide)) == {"x": Difference(10**12, 1, None)}


def test_names_and_shapes_that_differ_are_listed(tmp_path: Path) -> None:
    second = state() | {"more": torch.zeros(1), "0.bias": torch.zeros(9)}
    del second["0.weight"]
    diff = compared(tmp_path, state(), second)
    assert (diff.only_first, diff.only_second) == (("0.weight",), ("more",))
    assert values(diff) == {"0.bias": None}
    assert verdict(diff) == ("differ: 1 of 6 tensors, 1 tensor only in a.pt, 1 tensor only in b.pt")
    assert "8 / 9" in diff_page(diff)


def test_weights_alone_are_compared_under_the_names_that_fit(tmp_path: Path) -> None:
    wrapped = OrderedDict((f"module.{name}", tensor) for name, tensor in state().items())
    diff = compared(tmp_path, {"epoch": 3, "model": wrapped}, state())
    assert diff.containers == ("model", "the file itself")
    assert (diff.rule, diff.equal) == ("module. removed", True)
    assert verdict(diff) == "equal: 7 tensors, bit for bit, with module. removed"


def test_what_lies_around_the_weights_is_compared_too(tmp_path: Path) -> None:
    common = {"args": Namespace(lr=0.1), "nan": math.nan, "betas": (0.9, 0.99)}
    first = common | {"model": state(), "epoch": 3, "seed": [1, 2], "gone": "x"}
    second = common | {"model": state(), "epoch": 4, "seed": [1, 3]}
    diff = compared(tmp_path, first, second)
    assert {(entry.name, entry.first, entry.second) for entry in diff.entries} == {
        ("epoch", "3", "4"),
        ("seed", "(1, 2)", "(1, 3)"),
        ("gone", "'x'", ""),
    }
    assert verdict(diff) == "differ: 7 tensors equal, but 3 other values"
    as_dict = first | {"args": {"lr": 0.1}}
    assert compared(tmp_path, first, as_dict).equal


def test_devices_and_sharing_are_told_but_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tied = torch.ones(3)
    torch.save({"a": tied, "b": tied}, tmp_path / "b.pt")
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save({"a": tied, "b": tied.clone()}, tmp_path / "a.pt")
    diff = diff_checkpoints(tmp_path / "a.pt", tmp_path / "b.pt")
    assert diff.equal
    assert diff.devices == {("cuda:0", "cpu"): 2}
    assert diff.sharing == (f"a, b in {tmp_path / 'b.pt'} only",)


def test_quantized_and_sparse_tensors_are_compared(tmp_path: Path) -> None:
    def content(scale: float, value: float) -> dict[str, Any]:
        dense = torch.tensor([[0.0, value], [1.0, 0.0]])
        quantized = torch.quantize_per_tensor(torch.ones(4) * scale, scale, 0, torch.qint8)
        return {"q": quantized, "s": dense.to_sparse()}

    assert compared(tmp_path, content(0.5, 2), content(0.5, 2)).equal
    assert compared(tmp_path, content(0.5, 2), content(0.25, 2)).entries
    assert compared(tmp_path, content(0.5, 2), content(0.5, 3)).different


def test_the_same_thing_said_too_often_is_refused(tmp_path: Path) -> None:
    tree = List([0, "x"])
    for _ in range(60):
        tree = List([tree, tree])
    path = tmp_path / "bomb.pt"
    write_tree(tree, path)
    with pytest.raises(CorruptCheckpoint, match="too many times"):
        diff_checkpoints(path, path)


def test_nothing_heavy_is_imported_where_bytes_are_equal(tmp_path: Path) -> None:
    compared(tmp_path, state(), state())
    code = (
        "import sys; from ptools.checkpoint.look.diff import diff_checkpoints;"
        "from ptools.checkpoint.look.pages import diff_page;"
        "diff_page(diff_checkpoints(*sys.argv[1:]));"
        "print({'torch', 'numpy', 'rich'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "set()\n"
