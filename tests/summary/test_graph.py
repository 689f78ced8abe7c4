"""The TensorBoard graph, read back by TensorBoard's own reader."""

from __future__ import annotations

import dataclasses
import graphlib
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ptools.errors import UsageError
from ptools.inputs import from_value
from ptools.summary.build import build
from ptools.summary.graph import write_graph
from ptools.summary.graph.record import record_graph
from ptools.summary.ladder import Subject
from ptools.summary.report import Rung

Edges = dict[str, set[str]]


@pytest.fixture
def graph_of(tmp_path: Path) -> Any:
    """Writes a model's graph and gives the nodes that TensorBoard reads, after checking them."""

    def graph_of(model: nn.Module, inputs: Any, rung: Rung = "meta", training: bool = False) -> Any:
        subject = Subject(model, training=training)
        folder = write_graph(subject, from_value(inputs, "given", "test"), rung, tmp_path, "net")
        nodes = _read(folder)
        _check(nodes)
        return nodes

    return graph_of


def _read(folder: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    graph = events.Graph()
    assert len({node.name for node in graph.node}) == len(graph.node)
    return {node.name: node for node in graph.node}


def _check(nodes: dict[str, Any]) -> None:
    """What TensorBoard needs of any graph."""
    for name, node in nodes.items():
        assert re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_./-]*", name)
        parts = name.split("/")
        assert all(parts)
        assert not any("/".join(parts[:end]) in nodes for end in range(1, len(parts)))
        for source in node.input:
            maker, _, output = source.partition(":")
            assert int(output or 0) < len(nodes[maker].attr["_output_shapes"].list.shape)
    list(graphlib.TopologicalSorter(_edges(nodes)).static_order())


def _edges(nodes: dict[str, Any]) -> Edges:
    return {n: {i.partition(":")[0] for i in node.input} for n, node in nodes.items()}


def _shapes(node: Any) -> list[tuple[int, ...]]:
    shapes = node.attr["_output_shapes"].list.shape
    return [tuple(dim.size for dim in shape.dim) for shape in shapes]


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.fc = nn.Linear(4, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.act(self.conv(image))
        x = self.act(x + 1)
        return self.fc(x.mean((2, 3)))


def test_every_edge_of_a_net_written_by_hand(graph_of: Any) -> None:
    nodes = graph_of(_Net(), torch.zeros(2, 3, 8, 8))
    assert _edges(nodes) == {
        "input/image": set(),
        "conv/weight": set(),
        "conv/bias": set(),
        "conv/convolution": {"input/image", "conv/weight", "conv/bias"},
        "act/relu": {"conv/convolution"},
        "add": {"act/relu"},
        "act_1/relu": {"add"},
        "mean": {"act_1/relu"},
        "fc/weight": set(),
        "fc/t": {"fc/weight"},
        "fc/bias": set(),
        "fc/addmm": {"fc/bias", "mean", "fc/t"},
        "output": {"fc/addmm"},
    }
    conv = nodes["conv/convolution"]
    assert conv.op == "aten::convolution"
    assert _shapes(conv) == [(2, 4, 8, 8)]
    assert conv.attr["macs"].i == 2 * 4 * 8 * 8 * 3 * 9
    assert conv.attr["dtype"].s == b"float32"
    assert nodes["fc/bias"].op == "Parameter"
    assert nodes["input/image"].op == "Input"
    assert nodes["output"].op == "Output"


def test_a_resnet18(graph_of: Any, torchvision: Any) -> None:
    get_model = pytest.importorskip("pytorchcv.model_provider").get_model
    model = get_model("resnet18")
    nodes = graph_of(model, torch.zeros(1, 3, 224, 224))
    ops = Counter(node.op for node in nodes.values())
    kinds = Counter(type(module) for module in model.modules())
    assert ops["aten::convolution"] == kinds[nn.Conv2d]
    assert ops["aten::native_batch_norm"] == kinds[nn.BatchNorm2d]
    assert ops["aten::add"] + ops["aten::add_"] == 8  # one a residual unit
    assert ops["Parameter"] == len(list(model.parameters()))
    macs = sum(node.attr["macs"].i for node in nodes.values())
    assert macs == pytest.approx(1.81e9, rel=0.01)
    _everything_leads_to_the_output(nodes)


def _everything_leads_to_the_output(nodes: dict[str, Any]) -> None:
    read = set().union(*_edges(nodes).values())
    assert [nodes[name].op for name in nodes if name not in read] == ["Output"]


def _forward(function: Any) -> nn.Module:
    """A model without parameters."""

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return function(x)

    return Model()


def test_in_place_operations_follow_each_other(graph_of: Any) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y.mul_(2)
        y.relu_()
        return y.exp()

    edges = _edges(graph_of(_forward(function), torch.zeros(3)))
    assert edges["mul_"] == {"add"}
    assert edges["relu_"] == {"mul_"}
    assert edges["exp"] == {"relu_"}


@pytest.mark.parametrize("rung", ["meta", "fake", "cpu"])
def test_a_write_through_a_view_reaches_its_base_and_other_views(graph_of: Any, rung: Rung) -> None:
    def function(x: torch.Tensor) -> Any:
        base = torch.zeros(4, 4)
        before = base[1]
        base[0].copy_(x)
        return base.exp(), before.sin(), base[2].cos()

    edges = _edges(graph_of(_forward(function), torch.zeros(4), rung))
    assert edges["copy_"] == {"select_1", "input/x"}
    assert edges["exp"] == {"zeros", "copy_"}
    assert edges["sin"] == {"select", "copy_"}
    assert edges["select_2"] == {"zeros", "copy_"}
    assert edges["cos"] == {"select_2"}


def test_each_of_several_outputs_is_told_apart(graph_of: Any) -> None:
    def function(x: torch.Tensor) -> Any:
        left, right = x.split([1, 3])
        return right.exp(), left.topk(1).indices

    nodes = graph_of(_forward(function), torch.zeros(4))
    assert list(nodes["exp"].input) == ["split_with_sizes:1"]
    assert list(nodes["topk"].input) == ["split_with_sizes"]
    assert list(nodes["output/1"].input) == ["topk:1"]
    assert _shapes(nodes["split_with_sizes"]) == [(1,), (3,)]
    assert nodes["topk"].attr["dtype"].s == b"float32, int64"


def test_tensors_of_unknown_origin_are_constants(graph_of: Any) -> None:
    held = torch.ones(3)

    def function(x: torch.Tensor) -> torch.Tensor:
        return x * held + held * torch.arange(3)

    nodes = graph_of(_forward(function), torch.zeros(3), "cpu")
    assert [n for n, node in nodes.items() if node.op == "Constant"] == ["constant"]
    assert _edges(nodes)["mul_1"] == {"constant", "arange"}
    assert nodes["arange"].op == "aten::arange"


def test_ids_of_freed_tensors_are_not_mistaken(graph_of: Any) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        for _ in range(50):
            x = (x + 1) * 2  # each result frees the one before
        return x

    edges = _edges(graph_of(_forward(function), torch.zeros(3)))
    for number in range(1, 50):
        before = f"_{number - 1}" if number > 1 else ""
        assert edges[f"add_{number}"] == {f"mul{before}"}
        assert edges[f"mul_{number}"] == {f"add_{number}"}


def test_running_statistics_are_written_in_training(graph_of: Any) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    nodes = graph_of(model, torch.zeros(4, 3), training=True)
    assert nodes["0/running_mean"].op == "Buffer"
    assert _edges(nodes)["0/add_"] == {"0/num_batches_tracked"}


class _Tied(nn.Module):
    """One Linear under two names, one weight in two layers, one parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.again = self.first
        self.embedding = nn.Embedding(4, 4)
        self.embedding.weight = self.first.weight
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.again(self.first(self.embedding(ids)))


def test_shared_modules_and_tied_weights_have_one_node(graph_of: Any) -> None:
    nodes = graph_of(_Tied(), torch.zeros(2, dtype=torch.long))
    parameters = {name for name, node in nodes.items() if node.op == "Parameter"}
    assert parameters == {"first/weight", "unused"}
    edges = _edges(nodes)
    assert edges["embedding/embedding"] == {"first/weight", "input/ids"}
    assert edges["first/mm"] == {"embedding/embedding", "first/t"}
    assert edges["first_1/mm"] == {"first/mm", "first_1/t"}
    assert edges["first_1/t"] == {"first/weight"}


@dataclasses.dataclass
class _Output:
    logits: torch.Tensor
    hidden: list[torch.Tensor]


def test_dict_and_dataclass_inputs_and_outputs(graph_of: Any) -> None:
    class Model(nn.Module):
        def forward(self, batch: dict[str, torch.Tensor], scale: torch.Tensor) -> Any:
            y = batch["a"] * scale
            return {"y": y, "rest": _Output(y.exp(), [batch["b"]])}

    batch = {"a": torch.zeros(3), "b": torch.zeros(5)}
    nodes = graph_of(Model(), {"batch": batch, "scale": torch.zeros(1)})
    assert _edges(nodes) == {
        "input/batch.a": set(),
        "input/batch.b": set(),
        "input/scale": set(),
        "mul": {"input/batch.a", "input/scale"},
        "exp": {"mul"},
        "output/y": {"mul"},
        "output/rest.logits": {"exp"},
        "output/rest.hidden.0": {"input/batch.b"},
    }


class _Odd(nn.Module):
    """Names that TensorBoard would not take, or would take for one another."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("_conv", "a b", "a_b", "relu", "input", "größe", "x/y"):
            self.add_module(name, nn.Linear(2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for child in self.children():
            x = torch.relu(child(x))
        return x


def test_names_are_made_valid_and_kept_apart(graph_of: Any) -> None:
    nodes = graph_of(_Odd(), torch.zeros(1, 2))
    groups = {name.partition("/")[0] for name in nodes if name.endswith("/weight")}
    assert groups == {"._conv", "a_b", "a_b_1", "relu", "input", "gr__e", "x_y"}
    assert {"relu_1", "input_1/x"} <= nodes.keys()
    assert "relu" not in nodes


def test_a_model_that_needs_to_see_its_device_runs_on_fake_tensors(graph_of: Any) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        assert x.device.type == "cpu"
        return x.exp()

    edges = _edges(graph_of(_forward(function), torch.zeros(3), "fake"))
    assert edges == {"input/x": set(), "exp": {"input/x"}, "output": {"exp"}}


def test_gpt2(graph_of: Any, torchvision: Any) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=96))
    inputs = {"input_ids": torch.zeros(1, 8, dtype=torch.long)}
    nodes = graph_of(model, inputs)
    edges = _edges(nodes)
    assert edges["transformer/wte/embedding"] >= {"transformer/wte/weight"}
    assert edges["lm_head/t"] == {"transformer/wte/weight"}
    assert _shapes(nodes["output/logits"]) == [(1, 8, 50257)]
    for block in range(2):
        assert nodes[f"transformer/h/{block}/attn/c_attn/addmm"].op == "aten::addmm"


def test_llama_70b_takes_seconds(graph_of: Any, torchvision: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    model = build(lambda: transformers.LlamaForCausalLM(config))
    start = time.monotonic()
    nodes = graph_of(model, {"input_ids": torch.zeros(1, 8, dtype=torch.long)})
    assert time.monotonic() - start < 10
    assert sum(node.op == "Parameter" for node in nodes.values()) == len(list(model.parameters()))
    assert sum(name.endswith("down_proj/mm") for name in nodes) == 80


def test_a_recurrent_network_is_the_same_graph_again() -> None:
    inputs = from_value(torch.zeros(4, 2, 8), "given", "test")
    first, second = (record_graph(Subject(nn.LSTM(8, 8)), inputs, "meta") for _ in range(2))
    assert first == second


def test_lazy_layers_get_their_shapes(graph_of: Any) -> None:
    nodes = graph_of(nn.Sequential(nn.LazyLinear(3)), torch.zeros(1, 2))
    assert _shapes(nodes["0/weight"]) == [(3, 2)]
    assert _shapes(nodes["output"]) == [(1, 3)]


def test_two_runs_give_the_same_graph() -> None:
    subject, inputs = Subject(_Net()), from_value(torch.zeros(1, 3, 8, 8), "given", "test")
    assert record_graph(subject, inputs, "meta") == record_graph(subject, inputs, "meta")
    assert record_graph(subject, inputs, "meta") == record_graph(subject, inputs, "cpu")


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    class Counting(_Net):
        calls = 0

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(image)

    model = Counting().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    inputs = from_value(torch.zeros(1, 3, 8, 8), "given", "test")
    write_graph(Subject(model), inputs, "cpu", tmp_path, "net")
    assert model.calls == 0
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def _write(directory: Path, name: str = "net") -> Path:
    inputs = from_value(torch.zeros(1, 3, 8, 8), "given", "test")
    return write_graph(Subject(_Net()), inputs, "meta", directory, name)


def test_earlier_runs_stay(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "runs"
    folders = [_write(directory) for _ in range(3)]
    assert [folder.name for folder in folders] == ["net", "net-2", "net-3"]
    assert all(_read(folder) for folder in folders)
    assert _write(directory, "../my net").parent == directory
    assert all(len(list(folder.iterdir())) == 1 for folder in folders)


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match="is a file"):
        _write(file)
    with pytest.raises(UsageError, match=r"cannot write to .*: Not a directory"):
        _write(file / "runs")
    with pytest.raises(UsageError, match="cannot write to /proc"):
        _write(Path("/proc/runs"))


def test_tensorboard_is_imported_only_to_write() -> None:
    code = "import sys, ptools.summary.graph; print('tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
