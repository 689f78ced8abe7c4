"""Options measured on a fused model, and those that do not hold."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from ptools.errors import PtoolsError, UsageError
from ptools.fusion import fuse
from ptools.fusion.inplace import inplace_activations
from ptools.fusion.int8 import measure_int8
from ptools.fusion.options import Cast, ChannelsLast, InplaceRelu
from ptools.fusion.trials import Trial
from ptools.fusion.variants import measure_variants

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TRIALS = [Trial((IMAGES,), {}, "")]


def network() -> nn.Module:
    torch.manual_seed(0)
    block = (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*block, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """A model and the fused one, which no test changes."""
    model = network()
    for _ in range(10):
        model(IMAGES)  # gives the batch norm its statistics
    return model.eval(), fuse(model.eval(), (IMAGES,), latency=False).model


def test_each_option_comes_on_top_of_those_before_it(pair: tuple[nn.Module, nn.Module]) -> None:
    original, fused = copy.deepcopy(pair)
    seen: list[tuple[bool, torch.dtype]] = []

    def spy(module: Any, args: Any) -> None:
        weight = module.weight
        seen.append((weight.is_contiguous(memory_format=torch.channels_last), weight.dtype))

    fused[0].register_forward_pre_hook(spy)  # type: ignore[operator, union-attr, index]
    activations = inplace_activations(fused, TRIALS)
    options = (ChannelsLast(), activations, Cast(torch.bfloat16))
    seen.clear()
    variants = measure_variants(original, fused, options, TRIALS, timed=False)
    assert [variant.name for variant in variants] == [
        "channels last",
        "in-place activations",
        "bfloat16",
    ]
    assert all(variant.problem is None for variant in variants)
    assert seen == [(True, torch.float32), (True, torch.float32), (True, torch.bfloat16)]


def test_a_cast_is_measured_without_fusing_too(pair: tuple[nn.Module, nn.Module]) -> None:
    original, fused = pair
    [cast] = measure_variants(original, fused, [Cast(torch.bfloat16)], TRIALS, timed=False)
    assert cast.difference is not None and cast.plain is not None
    plain = copy.deepcopy(original).bfloat16()
    with torch.no_grad():
        expected = copy.deepcopy(original).double()(IMAGES.double())
        worst = (plain(IMAGES.bfloat16()).double() - expected.double()).abs().max().item()
    assert cast.plain.max_abs == pytest.approx(worst)
    assert 0 < cast.difference.relative < 0.1


def test_neither_model_is_changed(pair: tuple[nn.Module, nn.Module]) -> None:
    before = copy.deepcopy([model.state_dict() for model in pair])
    options = (ChannelsLast(), InplaceRelu(("2",)), Cast(torch.float16))
    measure_variants(*pair, options, TRIALS, timed=False)
    for model, state in zip(pair, before, strict=True):
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == state[name].dtype and tensor.stride() == state[name].stride()
            assert torch.equal(tensor, state[name])
    assert not pair[1][2].inplace  # type: ignore[index]


def test_speed_is_measured_beside_the_original(
    pair: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptools.fusion.measure._SECONDS", 0.0)
    [variant] = measure_variants(*pair, [ChannelsLast()], TRIALS, timed=True)
    assert variant.latency is not None and variant.latency.before_seconds[0] > 0


class Fragile(nn.Module):
    """Adds and takes away what 8 bits of mantissa can't hold, or fails for other dtypes."""

    def __init__(self, wants_float32: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.wants_float32 = wants_float32

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if self.wants_float32 and y.dtype != torch.float32:
            raise RuntimeError("\"fragile_kernel\" not implemented for 'BFloat16'")
        return y + 1000 - 1000


def test_an_option_that_is_too_far_off_is_a_problem_and_not_kept() -> None:
    model = Fragile().eval()
    options = [Cast(torch.bfloat16), ChannelsLast()]
    cast, layout = measure_variants(model, model, options, TRIALS, timed=False)
    assert cast.problem is not None and "of the spread, is above" in cast.problem
    assert cast.difference is not None and cast.plain is not None
    assert layout.problem is None
    assert layout.difference is not None and layout.difference.relative < 1e-4


def test_a_tolerance_of_the_users_own_counts_where_it_is_larger() -> None:
    model = Fragile().eval()
    options = [Cast(torch.bfloat16)]
    [cast] = measure_variants(model, model, options, TRIALS, timed=False, tolerance=1e3)
    assert cast.problem is None


def test_a_kernel_that_is_missing_is_a_problem_and_no_crash() -> None:
    model = Fragile(wants_float32=True).eval()
    [cast] = measure_variants(model, model, [Cast(torch.bfloat16)], TRIALS, timed=False)
    assert cast.problem is not None and "not implemented for 'BFloat16'" in cast.problem
    assert cast.difference is None


def test_int8_without_data_says_what_to_pass(pair: tuple[nn.Module, nn.Module]) -> None:
    with pytest.raises(UsageError) as caught:
        measure_int8(*pair, [], timed=False)
    assert "--data" in (caught.value.hint or "")


def test_int8_without_torchao_says_what_to_install(
    pair: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    with pytest.raises(PtoolsError, match="torchao") as caught:
        measure_int8(*pair, TRIALS, timed=False)
    assert caught.value.hint == "pip install 'ptools[int8]'"


@pytest.mark.slow
def test_int8_runs_in_8_bits_and_is_near(pair: tuple[nn.Module, nn.Module]) -> None:
    pytest.importorskip("torchao")
    data = [*TRIALS, Trial((IMAGES.flip(0),), {}, ""), Trial((IMAGES[:2],), {}, "a smaller one")]
    state = copy.deepcopy(pair[1].state_dict())
    variant = measure_int8(*pair, data, timed=False)
    assert variant.problem is None
    assert variant.difference is not None and variant.difference.rows == 8
    assert 1e-4 < variant.difference.relative < 0.5  # no exact copy: it is rounded
    assert all(torch.equal(state[name], tensor) for name, tensor in pair[1].state_dict().items())


@pytest.mark.slow
def test_int8_of_a_model_that_cannot_be_exported_is_a_problem() -> None:
    pytest.importorskip("torchao")

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return y if y.sum() > 0 else -y

    model = Branching().eval()
    assert measure_int8(model, model, TRIALS, timed=False).problem is not None
