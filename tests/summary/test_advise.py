"""Each hint against numbers worked out by hand, and where it has to stay silent."""

import copy
import importlib
import math
import re

import pytest
import torch
from torch import nn

from ptools.files import human_bytes
from ptools.inputs import from_value
from ptools.summary.advice.places import fold_paths, places
from ptools.summary.advice.rules import advise
from ptools.summary.ladder import Subject, climb, run_on

FLOAT = 4  # bytes


def advice_for(model, *inputs):
    """The advice by rule, without the guideline's number."""
    values = tuple(torch.empty(shape, device="meta") for shape in inputs)
    given = from_value(values, "given", "test")
    subject = Subject(model)
    found = advise(climb(subject, given, backward=False), subject, given)
    return {re.sub(r" \(G\d\)", "", one.rule): one for one in found}


def conv_bytes(positions, c1, c2, kernel=1, groups=1, bias=True):
    """Read input and weight, write output, at stride 1."""
    weights = c1 // groups * c2 * kernel * kernel + (c2 if bias else 0)
    return FLOAT * (positions * (c1 + c2) + weights)


class Residual(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


# G1: equal widths


def test_unequal_widths_by_the_papers_formula():
    hw = 32 * 32
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 144, 1), nn.Conv2d(144, 16, 1),
        nn.Conv2d(16, 10, 3, padding=1),
    )  # fmt: skip
    macs = hw * 16 * 144
    access = hw * (16 + 144) + 16 * 144
    bound = 2 * math.sqrt(hw * macs) + macs / hw  # G1's lower bound, Ma et al. section 2
    excess = 2 * (access - bound) * FLOAT
    total = (
        conv_bytes(hw, 3, 16, 3) + conv_bytes(hw, 16, 144) + conv_bytes(hw, 144, 16)
        + conv_bytes(hw, 16, 10, 3)
    )  # fmt: skip
    advice = advice_for(model, (1, 3, 32, 32))["unequal widths"]
    assert advice.layers == ("1-2",)
    assert advice.cost.startswith(f"{human_bytes(excess)}, {excess / total:.1%} of all bytes")
    assert "16 -> 144" in advice.cost


@pytest.mark.parametrize(
    "middle",
    [
        nn.Conv2d(64, 64, 1),
        nn.Conv2d(64, 96, 1),
        nn.Conv2d(64, 512, 3, padding=1),
        nn.Conv2d(64, 512, 1, stride=2),
        nn.Conv2d(64, 512, 1, groups=2),
    ],
)
def test_widths_that_are_equal_enough_or_no_plain_1x1(middle):
    head = nn.Conv2d(middle.out_channels, 8, 3)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), middle, head)
    assert "unequal widths" not in advice_for(model, (1, 3, 32, 32))


def test_widths_of_the_first_and_last_layer_are_given():
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 2, 1))
    assert "unequal widths" not in advice_for(model, (1, 3, 32, 32))


# G2: groups


@pytest.mark.parametrize("groups, kind", [(32, "depthwise"), (4, "grouped")])
def test_groups_by_hand(groups, kind):
    hw = 16 * 16
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1, groups=groups),
        nn.Conv2d(32, 128, 3, padding=1),
    )
    few = hw * 32 * (32 // groups) * 9
    dense = hw * 32 * 3 * 9 + hw * 128 * 32 * 9
    few_bytes = conv_bytes(hw, 32, 32, 3, groups)
    dense_bytes = conv_bytes(hw, 3, 32, 3) + conv_bytes(hw, 32, 128, 3)
    advice = advice_for(model, (1, 3, 16, 16))[f"{kind} convolutions"]
    assert advice.layers == ("1",)
    assert advice.cost == (
        f"{kind} convolutions make {few / (few + dense):.1%} of the MACs and "
        f"{few_bytes / (few_bytes + dense_bytes):.1%} of the bytes: {few / few_bytes:.2g} MACs "
        f"per byte against {dense / dense_bytes:.2g} in the dense ones"
    )


def test_groups_that_cost_what_they_do():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, groups=2))
    assert not any("convolutions" in rule for rule in advice_for(model, (1, 3, 16, 16)))


# G3: fragments


def test_small_operations_are_counted():
    small = [nn.Conv2d(8, 8, 1, bias=False) for _ in range(24)]
    large = [nn.Conv2d(8, 8, 9, padding=4, bias=False) for _ in range(16)]
    advice = advice_for(nn.Sequential(*small, *large), (1, 8, 16, 16))["small operations"]
    share = 24 / (24 + 16 * 81)
    assert advice.layers == ("0-23",)
    assert advice.cost == (
        f"24 of 40 convolutions and matrix products make {share:.1%} of the MACs together"
    )


def test_many_equal_operations_are_not_small():
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(40)))
    assert not any("operations" in rule for rule in advice_for(model, (1, 8, 16, 16)))


class Branches(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(8 * count, 8, 3, padding=1) for _ in range(count))

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


def test_parallel_branches_are_counted():
    model = nn.Sequential(nn.Conv2d(3, 40, 3), Branches(5), Branches(5))
    advice = advice_for(model, (1, 3, 16, 16))["parallel branches"]
    assert advice.layers == ("1-2.branches.0-4",)
    assert advice.cost == (
        "10 of 11 convolutions and matrix products have at least 3 others beside them, "
        "up to 5 at a time"
    )


class CrossAttending(nn.Module):
    """Every layer reads the memory, and waits for the layer before."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(16, 16)
        self.own = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))
        self.other = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))

    def forward(self, x, source):
        memory = self.encode(source)
        for own, other in zip(self.own, self.other, strict=True):
            x = own(x) * other(memory)
        return x


def test_what_waits_is_not_parallel():
    assert "parallel branches" not in advice_for(CrossAttending(), (2, 16), (2, 16))
    three = nn.Sequential(nn.Conv2d(3, 24, 3), Branches(3), Branches(3))
    assert "parallel branches" not in advice_for(three, (1, 3, 16, 16))


# G4: element-wise


class Pointwise(nn.Module):
    def forward(self, x):
        return torch.tanh(torch.sigmoid(x) * 2)


def test_pointwise_chain_by_hand():
    """Three calls read and write n numbers each; fused they read n and write n."""
    n = 16 * 8 * 8
    total = conv_bytes(64, 16, 16) + 6 * n * FLOAT
    advice = advice_for(nn.Sequential(nn.Conv2d(16, 16, 1), Pointwise()), (1, 16, 8, 8))
    advice = advice["element-wise"]
    assert advice.layers == ("1",)
    assert advice.cost.startswith(
        f"3 point-wise calls move {human_bytes(6 * n * FLOAT)}, "
        f"{6 * n * FLOAT / total:.0%} of all bytes"
    )
    assert f"up to {human_bytes(4 * n * FLOAT)} less" in advice.change


def test_in_place_after_batch_norm_by_hand():
    """A ReLU that BatchNorm's loop does on the way saves a write and a read."""
    n = 16 * 8 * 8
    model = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    advice = advice_for(model, (1, 16, 8, 8))["element-wise"]
    assert advice.cost.startswith(f"1 point-wise call moves {human_bytes(2 * n * FLOAT)}")
    assert f"up to {human_bytes(2 * n * FLOAT)} less" in advice.change


def test_a_residual_is_read_again():
    """relu(x) goes to a convolution and, behind it, to the addition: nothing to fuse there."""
    body = nn.Conv2d(16, 16, 1)
    model = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), Residual(body))
    assert "element-wise" not in advice_for(model, (1, 16, 8, 8))


def test_few_pointwise_bytes():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
    assert advice_for(model, (1, 64)) == {}


# Bias before BatchNorm


def vgg(widths, **options):
    layers = []
    for c1, c2 in zip([3, *widths], widths, strict=False):
        layers += [nn.Conv2d(c1, c2, 3, padding=1, **options), nn.BatchNorm2d(c2), nn.ReLU()]
    return nn.Sequential(*layers)


def test_every_bias_of_a_vgg_is_named():
    advice = advice_for(vgg([8, 16, 32]), (2, 3, 8, 8))["bias before BatchNorm"]
    assert set(advice.layers) == {"0", "3", "6"}
    assert advice.cost.startswith(f"{8 + 16 + 32} bias parameters")
    assert advice.change == "build with bias=False"


def test_the_bias_named_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    assert advice_for(model, (4, 8))["bias before BatchNorm"].layers == ("0",)
    without = copy.deepcopy(model)
    without[0].bias.data.zero_()
    x = torch.randn(32, 8)
    torch.testing.assert_close(model(x), without(x))


class UsedTwice(nn.Module):
    """The convolution's output goes on past the BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.conv(x)
        return self.bn(x) + x


class Returned(UsedTwice):
    def forward(self, x):
        x = self.conv(x)
        return self.bn(x), x


class NotNext(UsedTwice):
    """Registered side by side, with a ReLU in between."""

    def forward(self, x):
        return self.bn(self.conv(x).relu_())


class ViewKept(UsedTwice):
    def forward(self, x):
        x = self.conv(x)
        kept = x.flatten(1)
        return self.bn(x), kept


class SharedConvolution(UsedTwice):
    """One call is followed by a BatchNorm, the other one is not."""

    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv(x * 2)


@pytest.mark.parametrize("kind", [UsedTwice, Returned, NotNext, ViewKept, SharedConvolution])
def test_bias_that_is_not_cancelled(kind):
    assert "bias before BatchNorm" not in advice_for(kind(), (2, 3, 8, 8))


def test_bias_that_is_not_there_or_is_normalised_otherwise():
    assert "bias before BatchNorm" not in advice_for(vgg([8], bias=False), (2, 3, 8, 8))
    other_axis = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(5))
    assert "bias before BatchNorm" not in advice_for(other_axis, (2, 5, 8))
    layer_norm = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    assert "bias before BatchNorm" not in advice_for(layer_norm, (2, 8))


# Odd widths


class Language(nn.Module):
    def __init__(self, vocabulary, tied):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 64)
        self.body = nn.Linear(64, 64)
        self.head = nn.Linear(64, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.body(self.embedding(x.long())))


@pytest.mark.parametrize("tied", [False, True])
def test_odd_vocabulary_by_hand(tied):
    advice = advice_for(Language(50257, tied), (1, 16))["odd widths"]
    head, body = 64 * 50257, 64 * 64
    more = 64 * (50304 - 50257) / (head + body)
    assert advice.layers == ("head",)
    assert advice.cost.startswith(f"{head / (head + body):.1%} of the MACs")
    assert f"50,257 -> 50,304 ({100 * more:.2g}% more MACs)" in advice.change
    assert ("embedding.weight" in advice.change) == tied


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 10, 3)],
        [nn.Conv2d(1, 16, 3), nn.Conv2d(16, 2, 1)],
        [nn.Conv2d(3, 12, 1, groups=3), nn.Conv2d(12, 12, 15, groups=12)],
    ],
    ids=["stem and head", "colours and classes", "depthwise"],
)
def test_widths_that_the_data_dictate(layers):
    shape = (1, layers[0].in_channels, 24, 24)
    assert "odd widths" not in advice_for(nn.Sequential(*layers), shape)


# All together


@pytest.mark.parametrize("rung", ["meta", "fake", "cpu"])
def test_every_rung_says_the_same(rung):
    given = from_value(torch.empty(2, 3, 8, 8, device="meta"), "given", "test")
    subject = Subject(vgg([8, 18, 32]))
    run = run_on(rung, subject, given, backward=False)
    found = advise(run, subject, given)
    first = run_on("meta", subject, given, backward=False)
    assert found and found == advise(first, subject, given)


def test_the_model_is_left_alone():
    model = vgg([8, 16])
    before = copy.deepcopy(model.state_dict())
    advice_for(model, (2, 3, 8, 8))
    torch.testing.assert_close(model.state_dict(), before)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.fixture(scope="module")
def zoo(torchvision):
    return importlib.import_module("pytorchcv.model_provider").get_model


def test_resnet_has_only_what_torch_compile_does(zoo):
    for name in ("resnet18", "resnet50"):
        assert set(advice_for(zoo(name), (1, 3, 224, 224))) == {"element-wise"}, name


def test_mobilenet(zoo):
    model = zoo("mobilenetv2_w1")
    advice = advice_for(model, (1, 3, 224, 224))
    assert set(advice) == {"element-wise", "depthwise convolutions", "unequal widths"}
    sizes = {}

    def measure(module, args, output):
        sizes[module] = output[0].numel() * module.weight[0].numel()

    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for module in convolutions:
        module.register_forward_hook(measure)
    model.eval()(torch.zeros(1, 3, 224, 224))
    share = sum(n for m, n in sizes.items() if m.groups > 1) / sum(sizes.values())
    assert f"make {share:.1%} of the MACs" in advice["depthwise convolutions"].cost


def test_shufflenet_heeds_its_own_guidelines(zoo):
    advice = advice_for(zoo("shufflenetv2_w1"), (1, 3, 224, 224))
    assert not {"unequal widths", "small operations", "parallel branches"} & set(advice)
    assert "116 -> 120, 58 -> 64" in advice["odd widths"].change


# Names


def test_names_are_folded_exactly():
    paths = [f"layers.{i}.mlp.fc{j}" for i in range(12) for j in (1, 2)]
    assert fold_paths(paths) == ["layers.0-11.mlp.fc1-2"]
    assert fold_paths(["a.0.b", "a.1.b", "a.3.b", "c"]) == ["a.0-1.b", "a.3.b", "c"]
    assert fold_paths(["s1.u1", "s1.u2", "s2.u1"]) == ["s1.u1-2", "s2.u1"]
    assert fold_paths([""]) == ["the model itself"]


def test_many_names_are_counted():
    costs = {f"{name}.conv": float(i) for i, name in enumerate("abcd")}
    assert places(costs) == ("4 layers, the costliest d.conv",)
    assert places({"a": 1.0, "b": 2.0}) == ("b", "a")
