"""16 bits: what fusing adds to their error, and weights that do not fit."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from ptools.fusion import fuse
from ptools.fusion.options import Cast
from ptools.fusion.precision import adapted, reference_of, tolerance_for
from ptools.fusion.report import Difference
from ptools.fusion.trials import Trial
from ptools.fusion.variants import measure_variants

Trained = Callable[..., nn.Module]
SMALL = Difference(0.0, 0.01, 1.0)


def images(seed: int, batch: int = 16) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def layers(seed: int, depth: int = 4, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    found: list[nn.Module] = []
    for index in range(depth):
        conv = nn.Conv2d(width if index else 3, width, 3, padding=1, bias=False)
        found += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*found[:-1])


def rms_error(
    model: nn.Module, exact: nn.Module, dtype: torch.dtype, samples: Sequence[torch.Tensor]
) -> float:
    """Of outputs in `dtype` against those of `exact` in float64."""
    cast, exact = copy.deepcopy(model).to(dtype), copy.deepcopy(exact).double()
    with torch.no_grad():
        errors = [cast(x.to(dtype)).double() - exact(x.double()) for x in samples]
    return torch.cat(errors).square().mean().sqrt().item()


@pytest.mark.parametrize("seed", range(2))
def test_a_fused_model_is_no_further_off_in_bfloat16_than_unfused(
    trained: Trained, seed: int
) -> None:
    net, samples = trained(layers(seed), seed), [images(1), images(2)]
    fused = fuse(net, (images(0, 2),), latency=False).model
    unfused_error = rms_error(net, net, torch.bfloat16, samples)
    assert 0 < rms_error(fused, net, torch.bfloat16, samples) <= unfused_error


@pytest.mark.slow
def test_a_real_net_is_no_further_off_when_it_is_fused(trained: Trained, torchvision: Any) -> None:
    provider = pytest.importorskip("pytorchcv.model_provider")
    torch.manual_seed(0)
    exact = trained(provider.get_model("resnet20_cifar10"))
    x = torch.randn(4, 3, 32, 32)
    fused = fuse(exact, (x,), latency=False).model
    for dtype in (torch.bfloat16, torch.float16):
        [cast] = measure_variants(exact, fused, [Cast(dtype)], [Trial((x,), {}, "")], timed=False)
        assert cast.difference is not None and cast.plain is not None
        assert 0 < cast.difference.relative <= cast.plain.relative


def _one_dead_channel() -> nn.Module:
    """Its variance is next to none, so that the folded weight is a million times larger."""
    model = layers(0, depth=1).eval()
    norm = model[1]  # type: ignore[index]
    norm.running_var[0] = 0.0
    norm.eps = 1e-14
    with torch.no_grad():
        model[0].weight[0] *= 1e-4  # type: ignore[index, union-attr, operator]
        model[0].weight[0, 0, 0, 0] = 1.0  # type: ignore[index, union-attr, operator]
    return model


def test_a_channel_that_overflows_16_bits_is_noticed_before_it_is_cast() -> None:
    model, x = _one_dead_channel(), images(0) * 1e-4
    report = fuse(model, (x,), latency=False, tolerance=1.0)
    assert report.folded == 1  # in float32 it fits
    tries = [Trial((x,), {}, "")]
    [cast] = measure_variants(model, report.model, [Cast(torch.float16)], tries, timed=False)
    assert cast.problem == "0.weight is too large for float16"


def test_a_model_of_16_bits_keeps_a_norm_whose_fold_would_overflow() -> None:
    model = _one_dead_channel()
    norm = model[1]  # type: ignore[index]
    norm.running_var[0], norm.eps = 1e-7, 1e-12
    with torch.no_grad():
        norm.weight[0] = 60.0
    report = fuse(model.half(), (images(0).half() * 1e-3,), latency=False, tolerance=1.0)
    assert report.folded == 0
    assert "overflow" in report.left[0].reason


@pytest.mark.parametrize(
    ("dtype", "finer"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
    ],
)
def test_a_model_is_compared_with_itself_in_more_bits(
    trained: Trained, dtype: torch.dtype, finer: torch.dtype
) -> None:
    model = trained(layers(0)).to(dtype)
    image = images(0).to(dtype)
    [expected], unfused = reference_of(model, [Trial((image,), {}, "")])
    assert next(model.parameters()).dtype == dtype
    exact = copy.deepcopy(model).to(finer)
    with torch.no_grad():
        assert torch.equal(expected, exact(image.to(finer)))
        off = (model(image).double() - expected.double()).abs().max() / expected.double().std()
    assert unfused is not None
    assert unfused.relative == pytest.approx(off.item())


class InsistsOnHalf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.bfloat16())


def test_a_model_that_insists_on_16_bits_is_its_own_reference() -> None:
    model = InsistsOnHalf().bfloat16().eval()
    [expected], unfused = reference_of(model, [Trial((images(0),), {}, "")])
    assert unfused is None
    with torch.no_grad():
        assert torch.equal(expected, model(images(0)))


class RoundsItsInput(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 1e8).round() % 7


def test_a_model_that_goes_another_way_in_more_bits_is_its_own_reference() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), RoundsItsInput()).eval()
    [expected], unfused = reference_of(model, [Trial((images(0),), {}, "")])
    assert unfused is None
    with torch.no_grad():
        assert torch.equal(expected, model(images(0)))


def test_the_tolerance_grows_with_what_the_dtype_loses_anyway() -> None:
    assert tolerance_for(torch.float32) < tolerance_for(torch.float16)
    assert tolerance_for(torch.float16) < tolerance_for(torch.bfloat16)
    assert tolerance_for(torch.bfloat16, SMALL) == tolerance_for(torch.bfloat16)
    assert tolerance_for(torch.bfloat16, Difference(0.0, 1.0, 1.0)) == 2.0


def test_integers_are_handed_over_as_they_are() -> None:
    trial = adapted(Trial((torch.arange(3), images(0)), {}, "x"), Cast(torch.float16))
    assert [tensor.dtype for tensor in trial.args] == [torch.int64, torch.float16]
