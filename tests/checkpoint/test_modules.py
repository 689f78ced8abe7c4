import os
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trees import write_tree

from ptools.checkpoint.errors import CorruptCheckpoint
from ptools.checkpoint.formats.legacy import read_legacy
from ptools.checkpoint.formats.torch_zip import read_torch_zip
from ptools.checkpoint.pickles.modules import Found, state_dicts
from ptools.checkpoint.pickles.nodes import Call, Dict, Global, List, Node, Tuple

# The classes of a project that is gone when its checkpoint is read.
PROJECT = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, dim=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dim, 3, bias=False), nn.BatchNorm2d(dim), nn.ReLU())
        self.embedding = nn.Embedding(5, dim)
        self.head = nn.Linear(dim, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.again = self.stem
        self.part = nn.Parameter(self.embedding.weight.detach()[1:3])
        self.frozen = nn.Parameter(torch.rand(2, 3).t(), requires_grad=False)
        self.register_buffer("positions", torch.arange(4), persistent=False)
        self.register_buffer("scale", torch.ones(2, dtype=torch.float64))
        self.register_buffer("nothing", None)
        self.register_parameter("missing", None)
        self.new_buffer = nn.Buffer(torch.rand(2))
        self.absent = None
        self.plain = torch.rand(3)
        self.list = nn.ModuleList([nn.LSTM(2, 3), nn.ParameterList([nn.Parameter(torch.rand(1))])])
        self.named = nn.ParameterDict({"b": nn.Parameter(torch.rand(1)), "a": torch.rand(2)})
        self.named["b"].note = "with an attribute"
        self.normed = nn.utils.spectral_norm(nn.Linear(2, 2))
        self.callback = len

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.rand(1))


class Trainer:
    def __init__(self, model):
        self.model, self.history = model, [model.head, 0.5]
"""
CASES = {  # code that sets what is saved, and the state_dict or state_dicts that it should give
    "model": "value = Net(); wanted = value.state_dict()",
    "DataParallel": "net = Net(); value = nn.DataParallel(net); wanted = net.state_dict()",
    "AveragedModel": "value = AveragedModel(Net()); wanted = value.module.state_dict()",
    "AveragedModel DataParallel": """
value = AveragedModel(nn.DataParallel(Net()))
wanted = value.module.module.state_dict()""",
    "OptimizedModule": """
net = Net()
value, wanted = torch.compile(net, backend="eager"), net.state_dict()""",
    "OptimizedModule DataParallel": """
net = Net()
value, wanted = torch.compile(nn.DataParallel(net), backend="eager"), net.state_dict()""",
    "DistributedDataParallel": """
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
net = Net()
value, wanted = nn.parallel.DistributedDataParallel(net), net.state_dict()""",
    "within": """
value = Net()
wanted = value.state_dict()
value.stem[0] = torch.compile(value.stem[0], backend="eager")
value.stem = nn.DataParallel(value.stem)
value.again = value.stem
value.list[0] = checkpoint_wrapper(checkpoint_wrapper(value.list[0]))""",
    "training": """
net, ema = Net(), nn.DataParallel(Net().half())
value = {
    "epoch": 3,
    "model": net,
    "ema": ema,
    "best": [Net.Inner(), net],
    "modules": net._modules,
    "trainer": Trainer(net),
    "names": ["a", "b"],
}
wanted = {
    "model": net.state_dict(),
    "ema": ema.module.state_dict(),
    "best": value["best"][0].state_dict(),
    "head": net.head.state_dict(),
    "normed": net.normed.state_dict(),
}""",
}
WHOLE = [case for case in CASES if case not in ("within", "training")]
SCRIPT = """
import sys, warnings
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel
from models.net import Net, Trainer

warnings.simplefilter("ignore")
for case, code in eval(sys.argv[1]).items():
    exec(code)
    torch.save(value, f"{case}.zip")
    torch.save(value, f"{case}.legacy", _use_new_zipfile_serialization=False)
    torch.save(wanted, f"{case}.wanted")
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases, saved where the project was: it is gone."""
    folder = tmp_path_factory.mktemp("saved")
    source = folder / "models" / "net.py"
    source.parent.mkdir()
    source.write_text(PROJECT)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", SCRIPT, repr(CASES)]
    subprocess.run(command, check=True, cwd=folder, env=environment)
    source.unlink()
    return folder


def load(tree: Node, out: Path) -> Any:
    write_tree(tree, out)
    return torch.load(out, weights_only=True)


def by_ptools(path: Path, out: Path) -> tuple[Any, list[Found]]:
    read = read_legacy if path.suffix == ".legacy" else read_torch_zip
    root, found = state_dicts(read(path).root)
    return load(root, out), found


def assert_same(ours: Any, theirs: Any) -> None:
    """Names, order, values, strides, and which names share memory."""
    assert type(ours) is type(theirs) is OrderedDict
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].equal(tensor), name
        assert type(ours[name]) is torch.Tensor
        assert (ours[name].dtype, ours[name].stride(), ours[name].requires_grad) == (
            tensor.dtype,
            tensor.stride(),
            False,
        )
    assert groups(ours) == groups(theirs)


def groups(state: dict[str, torch.Tensor]) -> set[frozenset[str]]:
    places: dict[int, set[str]] = {}
    for name, tensor in state.items():
        places.setdefault(tensor.untyped_storage().data_ptr(), set()).add(name)
    return {frozenset(names) for names in places.values()}


@pytest.mark.parametrize("format", ["zip", "legacy"])
@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_model_becomes_its_state_dict(
    saved: Path, tmp_path: Path, case: str, format: str
) -> None:
    wanted = torch.load(saved / f"{case}.wanted", weights_only=True)
    ours, [found] = by_ptools(saved / f"{case}.{format}", tmp_path / "ours.pt")
    assert_same(ours, wanted)
    assert (found.where, found.path, found.notes) == ("", "models.net.Net", ())
    names = [wrapper.rpartition(".")[2] for wrapper in found.wrappers]
    assert names == ([] if case == "model" else case.split())
    assert found.tensors == len(wanted)


@pytest.mark.parametrize("format", ["zip", "legacy"])
def test_wrappers_within_the_model_go_too(saved: Path, tmp_path: Path, format: str) -> None:
    ours, [found] = by_ptools(saved / f"within.{format}", tmp_path / "ours.pt")
    assert_same(ours, torch.load(saved / "within.wanted", weights_only=True))
    names = {wrapper.rpartition(".")[2] for wrapper in found.wrappers}
    assert names == {"OptimizedModule", "DataParallel", "CheckpointWrapper"}


def test_models_in_a_checkpoint_are_replaced_where_they_are(saved: Path, tmp_path: Path) -> None:
    wanted = torch.load(saved / "training.wanted", weights_only=True)
    root, found = state_dicts(read_torch_zip(saved / "training.zip").root)
    places = {one.where: one.path for one in found}
    assert places["model"] == places["ema"] == "models.net.Net"
    assert places["best[0]"] == "models.net.Net.Inner"
    assert places["modules.head"] == "torch.nn.modules.linear.Linear"
    entries = {str(name): value for name, value in root.pairs}
    attributes = {str(name): value for name, value in entries.pop("trainer").states[0].pairs}
    assert attributes["model"] is entries["model"] is entries["best"].elements[1]
    plain = Dict([*entries.items(), ("history", attributes["history"])])
    ours = load(plain, tmp_path / "ours.pt")
    assert_same(ours["model"], wanted["model"])
    assert_same(ours["ema"], wanted["ema"])
    assert_same(ours["best"][0], wanted["best"])
    assert_same(ours["modules"]["normed"], wanted["normed"])
    assert_same(ours["history"][0], wanted["head"])
    assert (ours["epoch"], ours["names"], ours["history"][1]) == (3, ["a", "b"], 0.5)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1"])
def test_zoo_models_become_their_state_dicts(tmp_path: Path, torchvision: Any, name: str) -> None:
    model = getattr(torchvision.models, name)()
    torch.save(nn.DataParallel(model), tmp_path / "whole.pt")
    ours, _ = by_ptools(tmp_path / "whole.pt", tmp_path / "ours.pt")
    assert_same(ours, model.state_dict())
    model.load_state_dict(ours)


def test_a_traced_graph_module_becomes_its_state_dict(tmp_path: Path) -> None:
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    torch.save({"model": model}, tmp_path / "whole.pt")
    ours, [found] = by_ptools(tmp_path / "whole.pt", tmp_path / "ours.pt")
    assert_same(ours["model"], model.state_dict())
    assert found.where == "model"


def test_what_a_class_does_by_code_is_noted(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    model[0]._register_state_dict_hook(time.sleep)
    torch.save(model, tmp_path / "whole.pt")
    ours, [found] = by_ptools(tmp_path / "whole.pt", tmp_path / "ours.pt")
    assert list(ours) == ["0.weight", "0.bias"]
    unread, hooked, *rest = found.notes
    assert unread.startswith("'1.weight' (and 1 more) are no tensor")
    assert hooked.startswith("'0' is changed by a hook")
    assert all("1" not in note for note in rest)
    assert str(found).startswith("torch.nn.modules.container.Sequential, 2 tensors; '1.weight'")


def test_a_tree_without_modules_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "_parameters": {}}, path)
    root = read_torch_zip(path).root
    assert state_dicts(root) == (root, [])


def module(tensors: dict[str, Node], children: dict[str, Node], cls: str = "models.Net") -> Call:
    parts = {"_parameters": tensors, "_buffers": {}, "_modules": children}
    state = Dict([(name, Dict(list(part.items()))) for name, part in parts.items()])
    return Call(Global(*cls.rsplit(".", 1)), Tuple([]), new=True, states=[state])


def children_of(node: Call) -> list[tuple[Node, Node]]:
    pairs: list[tuple[Node, Node]] = node.states[0].pairs[2][1].pairs
    return pairs


def test_variables_of_torch_0_3_become_tensors(tmp_path: Path) -> None:
    path = tmp_path / "tensor.pt"
    torch.save(torch.arange(3.0), path)
    tensor = read_torch_zip(path).root
    parameter = Global("torch.nn.parameter", "Parameter")
    made = Call(parameter, Tuple([tensor]), states=[Tuple([True, False, None])])
    older = Call(parameter, Tuple([]), new=True, states=[Tuple([tensor, None, None, True, False])])
    root, [found] = state_dicts(module({"a": made, "b": older}, {}))
    ours = load(root, tmp_path / "ours.pt")
    assert ours["a"].tolist() == ours["b"].tolist() == [0, 1, 2]
    assert found.notes == ()


def test_a_module_that_holds_itself_is_refused() -> None:
    node = module({}, {})
    children_of(node).append(("child", node))
    with pytest.raises(CorruptCheckpoint, match="hold themselves"):
        state_dicts(List([node]))


def test_a_wrapper_that_holds_itself_is_refused(few: None) -> None:
    node = module({}, {}, cls="torch.nn.parallel.data_parallel.DataParallel")
    children_of(node).append(("module", node))
    with pytest.raises(CorruptCheckpoint, match="hold themselves"):
        state_dicts(node)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse sooner: in a test, a thousand modules are too many."""
    monkeypatch.setattr("ptools.checkpoint.pickles.modules._MOST", 100_000)


def test_modules_that_double_at_each_level_are_refused(few: None) -> None:
    node = module({}, {})
    for _ in range(60):
        node = module({}, {"a": node, "b": node})
    with pytest.raises(CorruptCheckpoint, match="too many"):
        state_dicts(node)


def test_deep_nesting_is_no_problem() -> None:
    node = module({}, {})
    for _ in range(2000):
        node = module({}, {"a": node})
    tree: Node = node
    for _ in range(5000):
        tree = List([tree])
    _, [found] = state_dicts(tree)
    assert found.tensors == 0
    compiled: Node = node
    for _ in range(5000):
        compiled = Call(Global("torch._dynamo.eval_frame", "OptimizedModule"), Tuple([compiled]))
    _, [found] = state_dicts(compiled)
    assert found.path == "models.Net"
