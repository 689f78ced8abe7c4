"""Parallel branches become one convolution wherever that is exact."""

import pytest
import torch
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def image(dimensions=2, channels=4):
    generator = torch.Generator().manual_seed(dimensions)
    return torch.randn(2, channels, *[7] * dimensions, generator=generator)


def branch(size, padding=None, dimensions=2, channels=4, **options):
    """A convolution that keeps the size, and a norm."""
    size = (size,) * dimensions if isinstance(size, int) else size
    padding = tuple(n // 2 for n in size) if padding is None else padding
    conv = CONVOLUTIONS[dimensions - 1](channels, 4, size, padding=padding, bias=False, **options)
    return nn.Sequential(conv, NORMS[dimensions - 1](4))


class Sum(nn.Module):
    """x is led into each branch, and what they give is added."""

    def __init__(self, *branches, how=sum):
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.how = how

    def forward(self, x):
        return self.how([branch(x) for branch in self.branches]).relu()


def plus(parts):
    return parts[2] + parts[0] + parts[1]


def accumulated(parts):
    total = 0
    for part in parts:
        total += part
    return total


def onto_the_first(parts):
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def by_function(parts):
    return torch.add(torch.add(parts[0], parts[1]), parts[2])


def in_place(parts):
    return parts[0].add_(parts[1]).add_(parts[2])


def one_by_one():
    return branch(1)


BLOCKS = {
    "RepVGG": lambda: (branch(3), branch(1), nn.BatchNorm2d(4)),
    "RepVGG with stride": lambda: (branch(3, stride=2), branch(1, stride=2)),
    "ACNet": lambda: (branch(3), branch((1, 3)), branch((3, 1)), nn.BatchNorm2d(4)),
    "MobileOne": lambda: (*(branch(3, groups=4) for _ in range(4)), branch(1, groups=4)),
    "dilated": lambda: (branch(3, padding=(2, 2), dilation=2), branch(1), nn.BatchNorm2d(4)),
    "grouped and dense": lambda: (branch(3), branch(3, groups=2), branch(1, groups=4)),
    "depthwise and identity": lambda: (branch(5, groups=4), nn.BatchNorm2d(4)),
    "plain identity": lambda: (branch(3), nn.BatchNorm2d(4), nn.Identity()),
    "1-d": lambda: (branch(3, dimensions=1), branch(1, dimensions=1), nn.BatchNorm1d(4)),
    "3-d": lambda: (branch(3, dimensions=3), branch(1, dimensions=3), nn.BatchNorm3d(4)),
    "another padding": lambda: (branch(3, padding=(0, 0)), branch(5, padding=(1, 1))),
    "even kernels": lambda: (branch(4, padding=(1, 1)), branch(2, padding=(0, 0))),
}


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "plain identity"])
def test_branches_become_one_convolution(assert_norms, name):
    model = Sum(*BLOCKS[name]())
    dimensions = int(name[0]) if name[0].isdigit() else 2
    norms = len(model.branches)
    report = assert_norms(model, image(dimensions), before=norms, after=0)
    assert report.operations[1].convolutions == 1
    assert report.merged == 1


def test_an_identity_that_is_no_module_is_added_still(assert_norms):
    report = assert_norms(Sum(*BLOCKS["plain identity"]()), image(), before=2, after=0)
    assert report.operations[1].norms == 0


@pytest.mark.parametrize("how", [sum, plus, accumulated, onto_the_first, by_function, in_place])
def test_sums_are_found_however_they_are_written(assert_norms, how):
    model = Sum(branch(3), one_by_one(), nn.BatchNorm2d(4), how=how)
    report = assert_norms(model, image(), before=3, after=0)
    assert report.operations[1].convolutions == 1


def test_a_sum_whose_code_needs_a_tensor_keeps_its_branches_but_not_their_norms(assert_norms):
    model = Sum(one_by_one(), branch(3), how=lambda parts: parts[0].add_(parts[1]))
    report = assert_norms(model, image(), before=2, after=0)
    assert report.operations[1].convolutions == 2


class Different(nn.Module):
    """Branches of which one reads another input, or moves in another way."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return self.first(x) + self.second(x.flip(-1))


@pytest.mark.parametrize(
    "model",
    [
        Different(branch(3), branch(1)),
        Sum(branch(3), branch(3, padding=(2, 2), dilation=2)),
        Sum(branch(3), nn.Sequential(nn.Conv2d(4, 4, 1, padding_mode="reflect"), nn.Sigmoid())),
        Sum(branch(3, stride=2), nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), *branch(1))),
        Sum(branch(3), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
    ],
    ids=["another input", "another dilation", "an activation", "a pool", "another padding mode"],
)
def test_branches_that_are_not_alike_stay_apart(assert_norms, model):
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    report = assert_norms(model, image(), before=norms, after=0)
    assert report.operations[1].convolutions == 2


def diverse():
    """Diverse Branch Block: two of its branches are one convolution, those that pool stay."""
    pooled = nn.Sequential(
        nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(4)
    )
    return Sum(branch(3), branch(1), pooled)


def test_a_norm_before_a_pool_that_pads_with_zeros_is_folded_no_further(assert_norms):
    report = assert_norms(diverse(), image(), before=4, after=1)
    assert report.operations[1].convolutions == 2


class Switched(Sum):
    """Has a method of its own, as RepVGG's blocks do."""

    wrong = 0.0

    def __init__(self):
        super().__init__(branch(3), branch(1))

    def switch_to_deploy(self):
        conv = nn.Conv2d(4, 4, 3, padding=1)
        weight, bias = 0, self.wrong
        for conv_, norm in self.branches:
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            pad = (3 - conv_.kernel_size[0]) // 2
            weight = weight + nn.functional.pad(conv_.weight, [pad] * 4) * scale.view(-1, 1, 1, 1)
            bias = bias + norm.bias - norm.running_mean * scale
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.branches = nn.ModuleList([conv])


class SwitchedWrongly(Switched):
    wrong = 1.0


class Fails(Switched):
    def switch_to_deploy(self):
        self.branches = nn.ModuleList()
        raise RuntimeError("not for this one")


class AsksForMore(Switched):
    def switch_to_deploy(self, optimizer):
        raise AssertionError("called without its argument")


@pytest.mark.parametrize(
    ("block", "own"), [(Switched, 1), (SwitchedWrongly, 0), (Fails, 0), (AsksForMore, 0)]
)
def test_a_models_own_method_is_used_only_if_it_is_right(assert_norms, block, own):
    report = assert_norms(nn.Sequential(block(), nn.Sigmoid()), image(), before=2, after=0)
    assert report.operations[1].convolutions == 1
    assert report.own == own


def test_one_wrong_method_among_others_is_found(assert_norms):
    blocks = Switched(), Switched(), SwitchedWrongly(), Switched(), Switched()
    report = assert_norms(nn.Sequential(*blocks), image(), before=10, after=0)
    assert report.operations[1].convolutions == 5
    assert report.own == 4


def test_a_branch_that_is_also_used_alone_is_folded_alone(assert_norms):
    class Both(Sum):
        def forward(self, x):
            return super().forward(x) + self.branches[1](x.flip(-1))

    report = assert_norms(Both(branch(3), branch(1)), image(), before=3, after=0)
    assert report.operations[1].convolutions == 3


class ByHand(nn.Module):
    """RepVGG's block with its layers as plain attributes: no branch is a module of its own."""

    def __init__(self):
        super().__init__()
        self.conv3, self.bn3 = branch(3)
        self.conv1, self.bn1 = branch(1)
        self.bn0 = nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.bn3(self.conv3(x)) + self.bn1(self.conv1(x)) + self.bn0(x)).relu()


def test_branches_need_not_be_modules_of_their_own(assert_norms):
    report = assert_norms(nn.Sequential(ByHand(), ByHand()), image(), before=6, after=0)
    assert [operations.convolutions for operations in report.operations] == [4, 2]
