"""What fusing covers: convolutions and norms of every kind, before, after, and between views."""

import copy

import pytest
import torch
from torch import nn

from ptools.fusion import fuse

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def image(dimensions, channels=4, size=6):
    generator = torch.Generator().manual_seed(dimensions)
    return torch.randn(2, channels, *[size] * dimensions, generator=generator)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_of_all_dimensions_and_groups(assert_norms, dimensions, groups, bias):
    options = {"stride": 2, "padding": 1, "dilation": 2, "groups": groups, "bias": bias}
    conv = CONVOLUTIONS[dimensions - 1](4, 8, 3, **options)
    norm = NORMS[dimensions - 1](8)
    assert_norms(nn.Sequential(conv, norm), image(dimensions), before=1, after=0)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_transposed_convolutions_with_output_padding(assert_norms, dimensions, groups):
    options = {"stride": 2, "padding": 1, "output_padding": 1, "groups": groups}
    conv = TRANSPOSED[dimensions - 1](4, 8, 3, **options)
    norm = NORMS[dimensions - 1](8)
    assert_norms(nn.Sequential(conv, norm), image(dimensions), before=1, after=0)


class Turned(nn.Module):
    """Linear, then a norm of its features by way of another order of dimensions."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2)


class Flattened(Turned):
    def forward(self, x):
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


class Wrongly(Turned):
    """The norm is of dimension 1, the linear layer of dimension 2, and both are of one size."""

    def forward(self, x):
        return self.norm(self.linear(x))


class Back(Turned):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        return self.linear(self.norm(x.flatten(0, 1)))


class FlatImage(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.conv(x).flatten(2))


class OverFeatures(FlatImage):
    """After flattening, each feature has statistics of its own."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(64)

    def forward(self, x):
        return self.norm(self.conv(x).flatten(1))


TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model", "x", "after"),
    [
        (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), ROWS, 0),
        (nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5, affine=False)), ROWS, 0),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5)), ROWS, 0),
        (nn.Sequential(nn.BatchNorm1d(5), nn.Linear(6, 5)), TOKENS, 1),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5)), TOKENS.new_ones(2, 6, 6), 1),
        (Turned(), TOKENS, 0),
        (Flattened(), TOKENS, 0),
        (Wrongly(), TOKENS, 1),
        (Back(), TOKENS, 0),
        (FlatImage(), image(2), 0),
        (OverFeatures(), image(2), 1),
    ],
    ids=str,
)
def test_linear_layers_by_the_dimension_that_they_change(assert_norms, model, x, after):
    assert_norms(model, x, before=1, after=after)


class LayerScale(nn.Module):
    def __init__(self, *shape, inplace=False):
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(shape))
        self.inplace = inplace

    def forward(self, x):
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


@pytest.mark.parametrize("inplace", [True, False])
def test_a_scale_of_each_channel(assert_norms, assert_same, trained, inplace):
    modules = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), LayerScale(4, 1, 1, inplace=inplace)
    report = assert_norms(nn.Sequential(*modules), image(2), before=1, after=0)
    assert isinstance(report.model[2], nn.Identity)
    report = fuse(nn.Sequential(nn.Linear(6, 5), LayerScale(5, inplace=inplace)).eval(), (ROWS,))
    assert isinstance(report.model[1], nn.Identity)


def test_a_scale_of_the_wrong_dimension_stays(assert_same):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), LayerScale(4)).eval()
    report = fuse(model, (image(2),), latency=False)
    assert_same(model, report.model, image(2))
    assert isinstance(report.model[1], LayerScale)


def test_lazy_layers_that_have_become_real(assert_norms):
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    model(image(2))
    assert_norms(model, image(2), before=1, after=0)


def test_subclasses_of_convolutions(assert_norms):
    class Own(nn.Conv2d):
        pass

    report = assert_norms(
        nn.Sequential(Own(4, 4, 3), nn.BatchNorm2d(4)), image(2), before=1, after=0
    )
    assert isinstance(report.model[0], Own)


def test_a_channel_without_variance(trained, assert_same):
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    with torch.no_grad():
        model[0].weight[1].zero_()
        model[1].running_var[1] = 0
        model[1].running_mean[1] = model[0].bias[1]
    report = fuse(model, (image(2),), latency=False)
    assert_same(model, report.model, image(2))
    assert report.folded == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_folded_in_float64(trained, dtype):
    model = trained(nn.Sequential(nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16))).to(dtype)
    fused = fuse(model, (image(2).to(dtype),), latency=False).model
    conv, norm = copy.deepcopy(model).double()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    bias = (conv.bias - norm.running_mean) * scale + norm.bias
    assert torch.equal(fused[0].weight, weight.to(dtype))
    assert torch.equal(fused[0].bias, bias.to(dtype))


def test_weights_that_would_overflow_stay(trained):
    model = trained(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))).half()
    with torch.no_grad():
        model[1].running_var.zero_()
        model[1].weight.fill_(6e4)
        model[1].running_mean.copy_(model[0].bias)
    report = fuse(model, (image(2).half() * 1e-3,), latency=False)
    assert isinstance(report.model[1], nn.BatchNorm2d)
    assert "overflow" in report.left[0].reason


class Frozen(nn.Module):
    """As torchvision's and DETR's FrozenBatchNorm2d: written out, in two operations."""

    def __init__(self, channels):
        super().__init__()
        for name, start in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(start)))

    def forward(self, x):
        scale = (self.weight * (self.running_var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        shift = self.bias.reshape(1, -1, 1, 1)
        return x * scale + (shift - self.running_mean.reshape(1, -1, 1, 1) * scale)


def test_a_norm_that_is_written_out(assert_norms):
    report = assert_norms(nn.Sequential(nn.Conv2d(4, 8, 3), Frozen(8)), image(2), before=0, after=0)
    assert (report.norms, report.folded) == (1, 1)
    assert type(report.model[1]) is nn.Identity


class ScaleAndShift(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.shift = nn.Parameter(torch.tensor([-0.5]))

    def forward(self, x):
        return self.scale * x + self.shift


def test_a_scale_before_a_view_and_a_linear_layer(assert_same):
    model = nn.Sequential(ScaleAndShift(), nn.Flatten(), nn.Linear(4, 3)).eval()
    x = image(2, size=1)
    report = fuse(model, (x,), latency=False)
    assert_same(model, report.model, x)
    assert type(report.model[0]) is nn.Identity
