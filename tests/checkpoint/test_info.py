import argparse
import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from trees import write_tree

from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.look.info import Amount, CheckpointInfo, describe
from ptools.checkpoint.look.pages import info_page, info_verdict
from ptools.checkpoint.look.sharing import Shared, Slack
from ptools.checkpoint.pickles.nodes import List
from ptools.checkpoint.pickles.tensors import tensor_of


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Save as torch does, as if from the device `tag`."""

    def save(content: Any, tag: str = "cpu", **options: Any) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(torch.serialization, "location_tag", lambda storage: tag)
            torch.save(content, tmp_path / "model.pt", **options)
        return tmp_path / "model.pt"

    return save


def training() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "best": np.float64(0.5),
        "model": OrderedDict((f"module.{k}", v) for k, v in model.state_dict().items()),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, name="x"),
    }


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def facts(info: CheckpointInfo) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in info.root.tensors()}


def test_each_tensor_is_what_torch_loads(saved: Callable[..., Path]) -> None:
    content = {
        "a": torch.randn(2, 3),
        "b": {"c": [torch.zeros((), dtype=torch.int64), torch.randn(3, 4).t()]},
        "d": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "e": torch.zeros(0, 3, dtype=torch.bfloat16),
        "f": torch.ones(1).expand(5),
    }
    path = saved(content)
    loaded = torch.load(path, weights_only=True)
    found = facts(describe(path))
    truth = {"a": loaded["a"], "d": loaded["d"], "e": loaded["e"], "f": loaded["f"]}
    truth |= {"b.c.0": loaded["b"]["c"][0], "b.c.1": loaded["b"]["c"][1]}
    assert found.keys() == truth.keys()
    for name, tensor in truth.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].dtype == str(tensor.dtype).removeprefix("torch.")
        stride = None if tensor.is_contiguous() else tensor.stride()
        assert found[name].stride == stride
    assert (found["a"].bytes, found["f"].bytes) == (24, 4)


def test_a_training_checkpoint_and_what_would_be_done(saved: Callable[..., Path]) -> None:
    content = training()
    info = describe(path := saved(content, tag="cuda:1"))
    assert (info.format, info.bytes, info.files) == ("torch zip", path.stat().st_size, (path,))
    assert [entry.key for entry in info.root.entries] == list(content)
    assert info.locations.keys() == {"cuda:1"}
    assert info.dtypes.keys() == {"float32", "int64"}
    [container] = info.containers
    assert (container.keys, container.taken) == (("model",), True)
    assert container.wrappers == {"module.": len(content["model"])}
    assert info.tensors.count == 7 + 4 * 3
    assert (info.weights_only, info.mmap, info.loads_anywhere) == (False, True, False)
    assert {change.where for change in info.remedy.changes} == {"best", "args"}
    assert info_verdict(info) == (
        "fix-ckpt would: rename 7 names (module.), move 19 storages from cuda:1 to cpu, "
        "convert 2 objects"
    )
    refused = {found.path for found in info.globals if found.rule == "refused"}
    assert {"argparse.Namespace", "numpy.dtype"} <= refused


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ({"a": torch.zeros(2), "b": {1, 2}}, {}),
        ({"a": torch.zeros(2), "b": frozenset([1])}, {}),
        (training(), {}),
        ({"a": torch.zeros(2), "b": slice(1)}, {}),
        ({"a": torch.zeros(2)}, {"pickle_protocol": 3}),
        ({"a": torch.zeros(2)}, {"pickle_protocol": 4}),
        ({"a": torch.zeros(2)}, {"_use_new_zipfile_serialization": False}),
        (nn.Linear(2, 2), {}),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_it_tells_whether_torch_loads_it(
    saved: Callable[..., Path], content: Any, options: dict[str, Any]
) -> None:
    info = describe(path := saved(content, **options))
    for says, how in ((info.weights_only, {"mmap": False}), (info.mmap, {"mmap": True})):
        only_safe = not how["mmap"]
        try:
            torch.load(path, weights_only=only_safe, **how)
            loads = True
        except Exception:
            loads = False
        assert says == loads
    assert not (info.loads_anywhere and info.weights_only is None)


def test_a_plain_file_loads_anywhere(saved: Callable[..., Path]) -> None:
    info = describe(saved(nn.Linear(2, 3).state_dict()))
    assert info.loads_anywhere
    assert info_page(info).endswith("\nloads anywhere as it is\n")


def test_sharing_and_what_drags_memory_along(saved: Callable[..., Path]) -> None:
    large, pair = torch.zeros(1000, 3), torch.zeros(10)
    tied = torch.ones(4, 4)
    content = {"head": tied, "embed": tied.view(4, 4), "transposed": tied.t()}
    content |= {"rows": large[2:4], "one": pair[:5], "two": pair[5:]}
    info = describe(path := saved(content))
    assert set(info.shared) == {
        Shared("tied", ("head", "embed")),
        Shared("overlapping", ("head", "transposed")),
        Shared("apart", ("one", "two")),
    }
    assert info.slack == (Slack(("rows",), 998 * 12),)
    loaded = torch.load(path)
    assert loaded["head"].data_ptr() == loaded["embed"].data_ptr()
    assert loaded["rows"].untyped_storage().nbytes() - loaded["rows"].nbytes == 998 * 12
    page = info_page(info)
    assert "tied to head" in page and "transposed" in page and "drags 11.70 KiB" in page
    assert "--compact" in page.splitlines()[-1]


def test_a_hostile_file_runs_nothing_and_is_flagged(
    saved: Callable[..., Path], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    path = saved({"w": torch.zeros(3), "deep": [{"evil": Evil(f"touch {canary}")}]})
    info = describe(path)
    page = info_page(info)
    assert not canary.exists()
    assert [(found.path, found.where) for found in info.runs_code] == [
        (f"{os.name}.system", "deep[0].evil")
    ]
    assert f"RUNS CODE  {os.name}.system at deep[0].evil" in page
    assert page.splitlines()[-1].startswith("RUNS CODE")
    assert info.weights_only is False
    torch.load(path, weights_only=False)
    assert canary.exists()  # it would have


def test_a_pickled_module_is_shown_as_its_state_dict(saved: Callable[..., Path]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    info = describe(saved({"net": nn.DataParallel(model), "epoch": 1}))
    entry = info.root.entries[0]
    assert (entry.key, entry.kind) == ("net", "module")
    assert [below.key for below in entry.entries] == list(model.state_dict())
    assert info.remedy.modules == ("torch.nn.modules.container.Sequential at net",)


def test_safetensors_name_no_classes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2, 2), "b": torch.zeros(1)}, path)
    info = describe(path)
    assert (info.globals, info.weights_only, info.mmap) == ((), None, None)
    assert (info.tensors, info.loads_anywhere) == (Amount(2, 20), True)


def test_long_runs_fold_and_everything_unfolds_them(saved: Callable[..., Path]) -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(30)), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    info = describe(saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()}))
    page = info_page(info)
    assert len(page.splitlines()) < 40
    lines = [line.split() for line in page.splitlines()]
    assert ["0-29.weight", "4x4", "float32", "cpu", "64", "B", "x30"] in lines
    assert "step, exp_avg, exp_avg_sq: 186 tensors" in page
    whole = info_page(info, everything=True)
    assert all(f"\n  {name} " in whole for name in model.state_dict())


def test_a_page_holds_no_commands_for_the_terminal(saved: Callable[..., Path]) -> None:
    page = info_page(describe(saved({"\x1b[2Jbad\nname": torch.zeros(1), "v": "\x1b[31m"})))
    assert "\x1b" not in page
    assert "\\x1b[2Jbad\\nname" in page


def test_facts_become_json(saved: Callable[..., Path]) -> None:
    content = training() | {"nan": float("nan"), "huge": 1 << 60_000, "raw": b"\xff"}
    info = describe(saved(content, tag="cuda:0"))
    text = json.dumps(info.to_dict(), allow_nan=False)
    assert json.loads(text)["remedy"]["locations"] == [{"from": "cuda:0", "to": "cpu", "count": 19}]


def test_deep_and_circular_trees_end(tmp_path: Path) -> None:
    circle = List([])
    deep = List([circle])
    circle.elements += [deep, List([circle, circle])]
    for _ in range(10_000):
        deep = List([deep, deep])
    path = tmp_path / "deep.pt"
    write_tree(deep, path)
    page = info_page(describe(path))
    assert "nested too deep" in page
    assert page.endswith("holds no tensors\n")


def test_a_size_that_no_tensor_has_is_refused(saved: Callable[..., Path], tmp_path: Path) -> None:
    from ptools.checkpoint.formats import open_checkpoint

    checkpoint = open_checkpoint(saved({"a": torch.zeros(0, 2)}))
    tensor = tensor_of(checkpoint.root.pairs[0][1])
    assert tensor is not None
    tensor.call.args.elements[2].elements[1] = 10**5000
    path = tmp_path / "hostile.pt"
    write_tree(checkpoint.root, path)
    with pytest.raises(CorruptCheckpoint):
        describe(path)


def test_nothing_heavy_is_imported(saved: Callable[..., Path]) -> None:
    code = (
        "import sys; from ptools.checkpoint.look.info import describe;"
        "from ptools.checkpoint.look.pages import info_page; info_page(describe(sys.argv[1]));"
        "print({'torch', 'numpy', 'rich'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(saved(training()))]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "set()\n"
