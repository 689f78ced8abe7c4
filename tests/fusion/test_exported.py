"""The second prover: what torch.export's graph shows, and what becomes of a model that it can't."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptools.fusion.exported import agreement, exported_trace
from ptools.fusion.observe import observe
from ptools.fusion.prove import prove, signature, signatures
from ptools.fusion.regions import CONVOLUTIONS, Regions
from ptools.fusion.trials import Trial

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
        self.narrow = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        out = self.wide(x)
        out += self.narrow(x)
        return F.relu_(out + self.norm(x))


class Many(nn.Module):
    """Transposed, grouped, scaled and matrix kinds in a row."""

    def __init__(self):
        super().__init__()
        self.block = Branches()
        self.up = nn.ConvTranspose2d(3, 6, 2, 2, groups=3)
        self.norm = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 4, 1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.linear = nn.Linear(4, 5, bias=False)
        self.last = nn.BatchNorm1d(5)

    def forward(self, x):
        x = self.norm(self.up(self.block(x))).relu_()
        x = (self.conv(x) * self.scale).flatten(2).transpose(1, 2).contiguous()
        y = self.linear(x)
        return self.last(y.flatten(0, 1)).reshape_as(y)


class Frozen(nn.Module):
    """A batch norm written by hand, as detectors have it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(4) + 0.5)

    def forward(self, x):
        scale = (self.weight * (self.var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        shift = self.bias.reshape(1, -1, 1, 1) - self.mean.reshape(1, -1, 1, 1) * scale
        return self.conv(x) * scale + shift


class DecidesByData(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.conv(x)
        return y if y.mean() > 0 else -y


def exported(model):
    trace, problem = exported_trace(model, Trial((IMAGE,), {}, ""))
    assert problem is None
    return trace


def widest(trace):
    return {signature(region) for region in Regions(trace).widest()}


@pytest.mark.parametrize("kind", [Branches, Many, Frozen])
def test_both_provers_find_the_same_regions(kind, trained):
    model = trained(kind())
    observed = widest(observe(model, (IMAGE,), {})[0])
    assert observed
    assert widest(exported(model)) == observed


@pytest.mark.parametrize("kind", [Branches, Many])
def test_what_both_provers_show_stays(kind, trained):
    model = trained(kind())
    proof = prove(model, observe(model, (IMAGE,), {})[0])
    before = dict(proof.folds)
    agreement(proof, exported(model))
    assert before
    assert proof.folds == before


def test_a_fold_that_the_graph_does_not_show_is_refused(trained):
    model = trained(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)))
    proof = prove(model, observe(model, (IMAGE,), {})[0])
    assert len(proof.folds) == 1
    conv, norm, last = model
    model._modules = {"2": last, "0": conv, "relu": nn.ReLU(), "1": norm}
    agreement(proof, exported(model))
    assert not proof.folds
    assert proof.refused["1.running_mean"] == "torch.export's graph does not show it"


def test_the_kernel_of_a_region_is_what_the_model_computes(trained):
    model = trained(Branches())
    (region,) = Regions(exported(model)).widest()
    weight, bias = region.kernel()
    merged = F.conv2d(IMAGE.double(), weight, bias, padding=region.window.padding).relu()
    torch.testing.assert_close(merged, model.double()(IMAGE.double()))


def test_constants_are_computed():
    model = Frozen()
    (region,) = Regions(exported(model)).widest()
    weight, bias = region.kernel()
    torch.testing.assert_close(F.conv2d(IMAGE, weight.float(), bias.float()), model(IMAGE))
    assert signature(region) == {"conv.weight", "conv.bias", "weight", "bias", "mean", "var"}


def test_a_shared_weight_has_the_name_under_which_the_model_lists_it():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)).eval()
    model[2].weight = model[0].weight
    convolutions = [op for op in exported(model).ops if op.name in CONVOLUTIONS]
    assert [op.arguments["weight"].weight for op in convolutions] == ["0.weight", "0.weight"]
    assert convolutions[0].arguments["weight"] is convolutions[1].arguments["weight"]


def test_noise_on_a_weight_is_no_constant():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.scale = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x):
            return self.conv(x) * (self.scale + torch.randn(3, 1, 1))

    assert not any("scale" in names for names in signatures(exported(Noisy())))


def test_what_is_left_in_a_buffer_is_seen_from_outside(trained):
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.register_buffer("kept", torch.zeros(2, 3, 8, 8))

        def forward(self, x):
            y = self.conv(x)
            self.kept.copy_(y)
            return self.norm(y)

    assert not widest(exported(trained(Keeps())))


def test_a_view_of_everything_is_the_same_value(trained):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y[:].expand(y.shape))

    assert len(widest(exported(trained(Views())))) == 1


def test_lazy_layers_are_made_first():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()).eval()
    assert len(widest(exported(model))) == 1


def test_sizes_that_depend_on_data_do_no_harm():
    class Selects(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            rows = x.flatten()[x.flatten() > 0]
            return self.linear(rows[:, None].expand(-1, 4)), rows.nonzero()

    assert [op.name for op in exported(Selects()).ops if op.name == "aten::linear"]


def test_a_decision_by_data_is_said_with_its_line():
    trace, problem = exported_trace(DecidesByData(), Trial((IMAGE,), {}, ""))
    assert trace is None
    assert "\n" not in problem
    assert problem.startswith("torch.export: GuardOnDataDependentSymNode: ")
    line = DecidesByData.forward.__code__.co_firstlineno + 2
    assert f"test_exported.py:{line})" in problem


def test_nothing_is_printed_and_no_setting_changes(capfd):
    logging.disable(logging.DEBUG)
    filters = list(warnings.filters)
    config = torch._dynamo.config.get_config_copy()
    try:
        exported_trace(DecidesByData(), Trial((IMAGE,), {}, ""))
        exported(Branches().eval())
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)
    assert capfd.readouterr() == ("", "")
    assert warnings.filters == filters
    assert torch._dynamo.config.get_config_copy() == config
    assert torch.is_grad_enabled()
