"""Models converted for inference: what they say, weigh, and leave untouched."""

import importlib.util
import math

import pytest
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset

from ptools.errors import PtoolsError, UsageError
from ptools.train.conversion import Conversion
from ptools.train.convert import quantise, to_channels_last, to_half
from ptools.train.sync import sync_bn


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("ptools.train.conversion._SECONDS", 0.0)
    torch.manual_seed(0)


def cnn():
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 5))


def trace(model):
    """All that must stay as it is."""
    tensors = {
        name: (id(one), one._version) for name, one in model.state_dict(keep_vars=True).items()
    }
    return tensors, [module.training for module in model.modules()], torch.get_rng_state().tolist()


X = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("convert", [to_half, to_channels_last])
def test_the_model_and_the_data_come_back_untouched(convert):
    model, x = cnn(), X.clone()
    model[1].eval()
    before = trace(model)
    converted, _ = convert(model, x)
    assert trace(model) == before
    assert torch.equal(x, X)
    assert not any(module.training for module in converted.modules())
    mine = {one.data_ptr() for one in model.parameters()}
    assert mine.isdisjoint(one.data_ptr() for one in converted.parameters())


def test_the_figures_of_half_are_those_worked_out_by_hand():
    model = cnn()
    converted, report = to_half(model, X)
    with torch.no_grad():
        expected, got = model.eval()(X).double(), converted(X.half())
    assert got.dtype == torch.float16
    assert report.error == ((got - expected).abs().max() / expected.abs().max()).item()
    assert report.agreement == (got.argmax(1) == expected.argmax(1)).double().mean().item()
    assert report.samples == 8
    assert 0 < report.error < report.tolerance
    assert report.within


def test_only_batch_norm_stays_in_float32():
    converted, report = to_half(cnn(), X)
    assert {type(one) for one in converted.modules() if one in converted and has_floats(one)} == {
        nn.BatchNorm2d
    }
    assert report.bytes_after < report.bytes_before


def has_floats(module):
    return any(one.dtype == torch.float32 for one in module.parameters())


def test_a_variance_beyond_half_precision_keeps_its_meaning():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 144, 2))
    model[0].running_var.fill_(1e6)
    _, report = to_half(model, X * 1000)
    assert report.within
    with torch.no_grad():
        assert torch.isinf(model[0].running_var.half()).all()


def test_half_the_bytes_and_a_little_for_the_file():
    _, report = to_half(nn.Linear(500, 500), torch.rand(2, 500))
    assert report.bytes_before - report.bytes_after == pytest.approx(2 * 501 * 500, rel=0.01)


def test_channels_last_lays_out_weights_and_says_the_same():
    model = cnn()
    converted, report = to_channels_last(model, X)
    assert converted[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert report.error <= 1e-5
    assert report.bytes_after == report.bytes_before


def test_too_large_an_error_is_refused_with_its_figures_unless_allowed():
    with pytest.raises(
        PtoolsError, match=r"float16 is not accurate enough.*above 1e-07.*same class"
    ):
        to_half(cnn(), X, tolerance=1e-7)
    _, report = to_half(cnn(), X, tolerance=1e-7, check=False)
    assert not report.within
    assert report.to_dict()["within"] is False


def test_overflow_is_an_infinite_error():
    _, report = to_half(nn.Linear(144, 3), torch.full((2, 144), 1e6), check=False)
    assert report.error == math.inf


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, a, b):
        return {"sum": self.fc(a) + self.fc(b)}


A, B, Y = torch.rand(6, 4), torch.rand(6, 4), torch.zeros(6)


@pytest.mark.parametrize(
    ("model", "data", "samples"),
    [
        (nn.Linear(4, 3), A, 6),
        (nn.Linear(4, 3), (A, Y), 6),
        (nn.Linear(4, 3), [A, B], 12),
        (nn.Linear(4, 3), DataLoader(TensorDataset(A, Y), 4), 6),
        (Two(), ((A, B), Y), 6),
        (Two(), {"a": A, "b": B}, 6),
        (Two(), [{"a": A, "b": B}], 6),
    ],
    ids=["batch", "pair", "list", "loader", "two inputs", "mapping", "list of mappings"],
)
def test_data_comes_in_many_forms(model, data, samples):
    assert to_half(model, data)[1].samples == samples


def test_what_cannot_be_compared_is_said():
    with pytest.raises(UsageError, match="no data"):
        to_half(nn.Linear(4, 3), [])
    with pytest.raises(UsageError, match="data is 3"):
        to_half(nn.Linear(4, 3), 3)
    with pytest.raises(PtoolsError, match="does not run on the data: RuntimeError"):
        to_half(nn.Linear(4, 3), torch.rand(2, 5))

    class Float(nn.Linear):
        def forward(self, x):
            return super().forward(x.float())

    with pytest.raises(PtoolsError, match="does not run as float16: RuntimeError"):
        to_half(Float(4, 3), A)


def test_a_conversion_that_does_not_pay_says_so():
    report = Conversion("float16", 0.01, 0.001, 0.5, 8, 2048, 1024, 0.002, 0.004)
    assert str(report) == (
        "float16: error 0.001 of the largest output (within 0.01); same class for 50.0% of 8 "
        "samples; 2.00 KiB -> 1.00 KiB; 2 -> 4 ms, 0.50 x the speed, which does not pay on this "
        "machine"
    )


def test_speed_is_measured_in_turn():
    order = []

    class Noted(nn.Linear):
        def forward(self, x):
            order.append(self.weight.dtype)
            return super().forward(x)

    _, report = to_half(Noted(4, 3), A)
    assert order == [torch.float32, torch.float16] * 8  # once to compare, seven times to measure
    assert report.seconds_before > 0


def test_int8_wants_torchao_and_a_linear(monkeypatch):
    with pytest.raises(UsageError, match="no Linear"):
        quantise(nn.Conv2d(3, 3, 1), X)
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(PtoolsError, match="torchao") as caught:
        quantise(nn.Linear(4, 3), A)
    assert "ptools[int8]" in caught.value.hint


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
def test_int8_is_a_quarter_of_the_bytes_within_its_tolerance():
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    data = torch.rand(64, 256)
    before = trace(model)
    converted, report = quantise(model, data)
    assert trace(model) == before
    assert 0 < report.error < 0.1
    assert report.bytes_after == pytest.approx(report.bytes_before / 4, rel=0.1)
    assert "int8" in str(converted[0].weight)


def several(monkeypatch):
    """As among two processes; the meta device stands for a GPU, on which nothing is computed."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)


def test_sync_bn_keeps_what_an_optimizer_and_hooks_hold(monkeypatch):
    several(monkeypatch)
    model = cnn().to("meta")
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    model[1].register_forward_hook(print)
    synced = sync_bn(model)
    assert type(synced[1]) is nn.SyncBatchNorm
    assert synced[1].process_group is None
    now = dict(model.named_parameters()) | dict(model.named_buffers())
    assert list(now) == list(held)
    assert all(now[name] is held[name] for name in held)
    assert print in synced[1]._forward_hooks.values()


def test_sync_bn_leaves_frozen_ones_and_subclasses(monkeypatch):
    several(monkeypatch)

    class Act(nn.BatchNorm2d):
        pass

    frozen, fixed = nn.BatchNorm2d(2).eval(), nn.BatchNorm2d(2).requires_grad_(False)
    plain = nn.BatchNorm2d(2)
    model = nn.Sequential(frozen, fixed, Act(2), plain, plain).to("meta")
    sync_bn(model)
    names = [type(module).__name__ for module in model]
    assert names == ["BatchNorm2d", "BatchNorm2d", "Act", "SyncBatchNorm", "SyncBatchNorm"]
    assert model[3] is model[4]


def test_a_model_in_eval_mode_is_not_taken_as_frozen(monkeypatch):
    several(monkeypatch)
    assert type(sync_bn(nn.BatchNorm2d(2, device="meta").eval())) is nn.SyncBatchNorm


def test_sync_bn_is_undone_where_it_cannot_work(monkeypatch):
    model = cnn()
    expected = model.eval()(X)
    held = [*model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    several(monkeypatch)
    with pytest.raises(ValueError, match="GPU"):
        synced(X)
    plain = sync_bn(synced)
    plain(X).sum().backward()
    optimizer.step()
    assert all(one is other for one, other in zip(plain.parameters(), held, strict=True))
    assert not torch.equal(plain.eval()(X), expected)
    assert sync_bn(plain) is plain


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("convert", [to_half, to_channels_last])
def test_on_a_gpu_norms_and_recurrent_layers_run_too(convert):
    assert convert(cnn().cuda(), X)[1].within
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert convert(nn.LSTM(12, 8, batch_first=True).cuda(), X[:, 0])[1].within
