"""Convolutions, norms and surroundings that are not quite those of torch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from ptools.fusion import fuse

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std(), self.bias, padding=self.padding)


class PadsOnOneSide(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(F.pad(x, (1, 0, 1, 0)), self.weight, self.bias)


class IgnoresItsBias(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight)


class AddsItsBias(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight) + self.bias.view(-1, 1, 1)


class AddsMore(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.more = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x):
        return super().forward(x) + self.more


class Activates(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu()


class HasANorm(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(super().forward(x))


class NormalisesItself(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return super().forward(self.conv(x))


class Mirrored(nn.Module):
    def forward(self, weight):
        return weight + weight.flip(-1)


def parametrised():
    conv = nn.Conv2d(4, 4, 3)
    parametrize.register_parametrization(conv, "weight", Mirrored())
    return conv


class WithActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: the activation is a child."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class WithInlineActivation(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class TwoResults(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x), x.shape[0]


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


class Frozen(nn.Module):
    """As torchvision's and DETR's FrozenBatchNorm2d: written out."""

    def __init__(self, channels):
        super().__init__()
        for name, start in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(start)))

    def forward(self, x):
        weight, bias, mean, var = (
            each.reshape(1, -1, 1, 1)
            for each in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * (var + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


class Conditional(nn.BatchNorm2d):
    """Scale and shift come from the input."""

    def forward(self, x):
        scale = x.mean((0, 2, 3)) + self.weight
        return F.batch_norm(x, self.running_mean, self.running_var, scale, self.bias)


class Chooses(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) if x.mean() < 50 else x


class ToBfloat16(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.block(x).float()


class Noise(nn.Module):
    """Has one number a channel, scaled by a weight, and other ones for each size of batch."""

    def __init__(self):
        super().__init__()
        self.strength = nn.Parameter(torch.ones(1))

    def forward(self, x):
        torch.manual_seed(len(x))
        return x + self.strength * torch.randn(4, 1, 1)


def hooked(module, kind, hook):
    getattr(module, f"register_forward_{kind}")(hook)
    return module


def doubles(module, args, output=None):
    return args[0] * 2 if output is None else output * 2


def keeps(module, args, output):
    module.kept = output


def counts(module, args, output):
    module.times = getattr(module, "times", 0) + 1


def conv(*args, **kwargs):
    return nn.Conv2d(4, 4, *(args or (3,)), **kwargs)


def norm(**kwargs):
    return nn.BatchNorm2d(4, **kwargs)


MODELS = {
    "weight standardisation": ((Standardised(4, 4, 3), norm()), 1, 1),
    "a parametrised weight": ((parametrised(), norm()), 1, 1),
    "weight norm": ((parametrizations.weight_norm(conv()), norm()), 1, 1),
    "weight norm by hooks": ((weight_norm(conv()), norm()), 1, 1),
    "spectral norm by hooks": ((spectral_norm(conv()), norm()), 1, 1),
    "padding on one side": ((PadsOnOneSide(4, 4, 3), norm()), 1, 0),
    "padding same": ((conv(3, padding="same", dilation=2), norm()), 1, 0),
    "padding that reflects": ((conv(3, padding=1, padding_mode="reflect"), norm()), 1, 0),
    "a bias that is ignored": ((IgnoresItsBias(4, 4, 3), norm()), 1, 1),
    "a bias that the module adds": ((AddsItsBias(4, 4, 3), norm()), 1, 0),
    "another bias on top": ((AddsMore(4, 4, 3), norm()), 1, 1),
    "an activation in the convolution": ((Activates(4, 4, 3), norm()), 1, 1),
    "a norm in the convolution": ((HasANorm(4, 4, 3),), 1, 0),
    "a convolution in the norm": ((NormalisesItself(4),), 1, 1),
    "a norm with an activation as child": ((conv(), WithActivation(4)), 1, 0),
    "a norm with an activation inline": ((conv(), WithInlineActivation(4)), 1, 1),
    "a norm that doubles": ((conv(), Doubled(4)), 1, 1),
    "a norm with two results": ((conv(), TwoResults(4), First()), 1, 1),
    "a scale that comes from the data": ((conv(), Conditional(4)), 1, 1),
    "a norm that chooses": ((conv(), Chooses(4)), 1, 1),
    "a frozen norm written out": ((conv(), Frozen(4)), 0, 0),
    "SyncBatchNorm": ((conv(), nn.SyncBatchNorm(4)), 1, 0),
    "a norm without affine": ((conv(), norm(affine=False)), 1, 0),
    "a norm without momentum": ((conv(), norm(momentum=None)), 1, 0),
    "a norm without statistics": ((conv(), norm(track_running_stats=False)), 1, 1),
    "dropout between": ((conv(), nn.Dropout2d(0.5), norm()), 1, 0),
    "an identity between": ((conv(), nn.Identity(), norm()), 1, 0),
    "an activation between": ((conv(), nn.ReLU(), norm()), 1, 1),
    "two norms": ((conv(), norm(), norm()), 2, 0),
    "autocast": ((ToBfloat16(),), 1, 1),
    "a hook that changes the convolution's output": (
        (hooked(conv(), "hook", doubles), norm()),
        1,
        1,
    ),
    "a hook that keeps the convolution's output": ((hooked(conv(), "hook", keeps), norm()), 1, 1),
    "a hook on what holds the convolution": (
        (hooked(nn.Sequential(conv()), "hook", keeps), norm()),
        1,
        1,
    ),
    "a hook before the norm": ((conv(), hooked(norm(), "pre_hook", doubles)), 1, 1),
    "a hook on the norm that only counts": ((conv(), hooked(norm(), "hook", counts)), 1, 1),
    "noise between": ((conv(), Noise(), norm()), 1, 1),
    "a norm before an unpadded convolution": ((norm(), conv()), 1, 0),
    "a norm before a grouped convolution": ((norm(), conv(3, groups=2)), 1, 0),
    "a norm before a padded convolution": ((norm(), conv(3, padding=1)), 1, 1),
    "a norm before a convolution that reflects": (
        (norm(), conv(3, padding=1, padding_mode="reflect")),
        1,
        1,
    ),
    "norms on both sides": ((norm(), conv(), norm()), 2, 0),
}


@pytest.mark.parametrize(("modules", "before", "after"), MODELS.values(), ids=MODELS)
def test_the_output_stays_with(assert_norms, modules, before, after):
    assert_norms(nn.Sequential(*modules), X, before=before, after=after)


def test_the_output_stays_with_padding_on_one_side_by_name(trained, assert_same):
    model = trained(nn.Sequential(conv(2, padding="same"), norm()))
    assert_same(model, fuse(model, (X,), latency=False).model, X)
