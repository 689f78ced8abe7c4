"""The tensors that are alive: each storage once, by the name the program has for it."""

from __future__ import annotations

import gc
import json
import linecache
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ptools.train.memory.checkpointing import checkpoint_modules
from ptools.train.memory.report import Alive, MemoryReport, memory_report
from ptools.train.memory.watch import watch_memory


class Sentinel(nn.Module):
    """A model of sizes that no other test has."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(611, 7)
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = self.fc(x)
        return torch.sigmoid(self.norm(self.kept).exp())  # mark: sigmoid


@pytest.fixture(autouse=True)
def no_garbage() -> None:
    gc.collect()


def of_shape(report: MemoryReport, *shape: int) -> list[Alive]:
    return [one for one in report.tensors if one.shape == shape]


def owners(report: MemoryReport, *shape: int) -> list[str]:
    return sorted(one.owner for one in of_shape(report, *shape))


def test_a_models_tensors_are_known_by_name() -> None:
    model = Sentinel()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 611)).sum().backward()
    optimizer.step()
    report = memory_report()
    assert owners(report, 7, 611) == [
        "Adam exp_avg of Sentinel.fc.weight",
        "Adam exp_avg_sq of Sentinel.fc.weight",
        "Sentinel.fc.weight",
        "gradient of Sentinel.fc.weight",
    ]
    assert {one.kind for one in of_shape(report, 7, 611)} == {
        "optimizer state",
        "parameter",
        "gradient",
    }
    assert all(one.bytes == 7 * 611 * 4 for one in of_shape(report, 7, 611))
    names = [one.owner for one in report.tensors]
    assert "Sentinel.norm.running_mean" in names and "Sentinel.kept" in names


def test_the_second_model_of_a_class_has_a_number() -> None:
    models = Sentinel(), Sentinel()
    found = owners(memory_report(), 7, 611)
    assert found == ["Sentinel (2).fc.weight", "Sentinel.fc.weight"]
    del models


def test_variables_are_named_with_the_way_to_them() -> None:
    class Cache:
        def __init__(self) -> None:
            self.seen = {"a": [torch.zeros(1), torch.zeros(6001)]}

    plain, cache = torch.zeros(6002), Cache()
    report = memory_report()
    where = "test_variables_are_named_with_the_way_to_them()"
    assert owners(report, 6002) == [f"plain in {where}"]
    assert owners(report, 6001) == [f"cache.seen['a'][1] in {where}"]
    del plain, cache


def test_what_no_variable_leads_to_is_named_by_what_holds_it() -> None:
    def outer() -> Callable[[], torch.Tensor]:
        hidden = torch.zeros(6003)
        return lambda: hidden

    holder = [outer()]
    assert owners(memory_report(), 6003) == ["a variable of an inner function"]
    del holder


def test_a_storage_counts_once_and_its_views_are_named() -> None:
    whole = torch.zeros(64, 101)
    part = whole[3:9]
    before = sum(one.bytes for one in memory_report().tensors)
    (one,) = of_shape(memory_report(), 64, 101)
    assert one.bytes == 64 * 101 * 4
    assert [name.partition(" in ")[0] for name in one.views] == ["part"]
    more = whole.view(-1)
    assert sum(one.bytes for one in memory_report().tensors) == before
    del part, more


def test_a_view_whose_base_is_gone_counts_all_that_it_keeps() -> None:
    part = torch.zeros(1000, 603)[5]
    (one,) = of_shape(memory_report(), 603)
    assert one.bytes == 1000 * 603 * 4
    del part


def test_what_only_a_graph_keeps_is_seen_before_the_backward_and_gone_after() -> None:
    model = Sentinel()
    loss = model(torch.randn(13, 611)).sum()
    held = [one for one in of_shape(memory_report(), 13, 7) if one.kind == "saved for backward"]
    assert {"saved by SigmoidBackward0", "saved by ExpBackward0"} <= {one.owner for one in held}
    loss.backward()
    left = [one for one in of_shape(memory_report(), 13, 7) if one.kind == "saved for backward"]
    assert left == []


def test_to_report_does_not_run_a_checkpoint_again() -> None:
    model = checkpoint_modules(Sentinel(), Sentinel)
    calls = []
    model.fc.register_forward_hook(lambda *_: calls.append(1))
    loss = model(torch.randn(13, 611)).sum()
    memory_report()
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2


def test_the_line_that_made_it_is_told_while_watching() -> None:
    before = torch.zeros(6004)
    with watch_memory():
        model = Sentinel()
        loss = model(torch.randn(13, 611)).sum()
        made = torch.zeros(6005)  # mark: made
        report = memory_report()
        loss.backward()
    assert [one.line for one in of_shape(report, 6004)] == [""]
    assert marked(of_shape(report, 6005)[0]) == "made"
    sigmoid = next(one for one in report.tensors if one.owner == "saved by SigmoidBackward0")
    assert marked(sigmoid) == "sigmoid"
    assert "lines that made them" not in str(report)
    del before, made


def marked(one: Alive) -> str:
    file, _, line = one.line.rpartition(":")
    assert file.endswith("test_memory_report.py")
    return linecache.getline(__file__, int(line)).partition("# mark: ")[2].strip()


def test_while_watching_what_lives_outside_python_is_seen() -> None:
    with watch_memory():
        x = torch.zeros(6007, requires_grad=True)
        hidden = torch.autograd.graph.saved_tensors_hooks(_Box, lambda box: box.tensor)
        with hidden:
            loss = x.exp().sum()
        sizes = [one.bytes for one in memory_report().tensors]
    assert sizes.count(6007 * 4) == 2
    del loss


class _Box:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.detach()


def test_nothing_is_kept_alive_by_a_report_nor_by_watching() -> None:
    with watch_memory():
        one = torch.zeros(6006)
        report = memory_report()
    assert of_shape(report, 6006)
    del one  # a function's copied variables would still hold it
    assert of_shape(memory_report(), 6006) == []


def test_unusual_tensors_do_not_stop_it() -> None:
    sparse = torch.eye(617).to_sparse()
    rows = torch.eye(619).to_sparse_csr()
    meta = torch.zeros(6008, device="meta")
    lazy = UninitializedParameter()
    frozen = torch.zeros(9, requires_grad=True)
    with torch.no_grad():
        view = frozen.view(3, 3)
    report = memory_report()
    assert len(of_shape(report, 2, 617)) == len(of_shape(report, 620)) == 1
    assert of_shape(report, 6008) == []
    del sparse, rows, meta, lazy, view


def test_it_is_plain_data_and_a_table() -> None:
    losses = [torch.zeros(6009) for _ in range(30)]
    report = memory_report()
    found = json.loads(json.dumps(report.to_dict()))
    assert found["pools"] == [] or torch.cuda.is_initialized()
    assert sum(found["totals"]["cpu"].values()) == sum(
        one.bytes for one in report.tensors if one.device == "cpu"
    )
    rows = [line.split() for line in str(report).splitlines() if line.startswith("losses[...]")]
    assert rows[0][-6:] == ["6009", "float32", "cpu", "30", "704.18", "KiB"]
    assert "with watch_memory():" in str(report).splitlines()[-1]
    del losses


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_allocator_of_a_gpu_is_asked() -> None:
    tensor = torch.zeros(1024, 1024, device="cuda")
    report = memory_report()
    (pool,) = [one for one in report.pools if one.device == str(tensor.device)]
    assert pool.allocated_bytes == torch.cuda.memory_allocated()
    assert pool.reserved_bytes == torch.cuda.memory_reserved()
    assert pool.peak_bytes >= 4 * 2**20
    assert sum(report.totals()[pool.device].values()) <= pool.allocated_bytes
    assert f"{pool.device}: the allocator has" in str(report)
