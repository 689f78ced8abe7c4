"""Options as plain data, and activations that may write over their input."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ptools.errors import PtoolsError
from ptools.fusion.inplace import inplace_activations
from ptools.fusion.options import Cast, ChannelsLast, InplaceRelu
from ptools.fusion.steps import step_of
from ptools.fusion.trials import Trial

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution, an activation, and what `body` makes of them."""

    def __init__(self, body: Callable[..., Any], act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.act = act or nn.ReLU()
        self.body = body

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, x)


def found(model: nn.Module) -> tuple[str, ...]:
    return inplace_activations(model.eval(), [Trial((IMAGE.clone(),), {}, "")]).modules


@pytest.mark.parametrize(
    "option",
    [ChannelsLast(), InplaceRelu(("a", "b.c")), Cast(torch.bfloat16), Cast(torch.float16)],
)
def test_an_option_survives_being_written_down(option: Any) -> None:
    assert step_of(json.loads(json.dumps(option.to_dict()))) == option


@pytest.mark.parametrize(
    "entry",
    [
        *({"dtype": "float64"}, {"dtype": "load"}, {"dtype": ["float16"]}),
        *({"inplace": "act"}, {"inplace": [1]}, {"inplace": None}),
    ],
)
def test_an_entry_that_no_option_writes_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(PtoolsError, match="recipe"):
        step_of(entry)


def test_a_recipe_can_set_the_flag_of_activations_only() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Dropout())
    with pytest.raises(PtoolsError, match="Dropout"):
        InplaceRelu(("1",)).apply(model)


def test_channels_last_lays_out_images_and_volumes_and_keeps_values() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(4, 4))
    before = copy.deepcopy(model.state_dict())
    ChannelsLast().apply(model)
    plane, volume, flat = (layer.weight for layer in model)
    assert plane.is_contiguous(memory_format=torch.channels_last)
    assert volume.is_contiguous(memory_format=torch.channels_last_3d)
    assert flat.is_contiguous()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_tied_weights_stay_tied_in_another_layout() -> None:
    first, second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
    second.weight = first.weight
    ChannelsLast().apply(nn.Sequential(first, second))
    assert second.weight is first.weight


def test_a_cast_takes_floating_point_alone() -> None:
    model = nn.BatchNorm1d(3)
    Cast(torch.bfloat16).apply(model)
    assert model.running_var is not None and model.running_var.dtype == torch.bfloat16
    assert model.num_batches_tracked is not None
    assert model.num_batches_tracked.dtype == torch.int64
    assert Cast(torch.bfloat16).place(torch.arange(3)).dtype == torch.int64


@pytest.mark.parametrize(
    "act", [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.LeakyReLU(), nn.Hardsigmoid()]
)
def test_an_activation_after_a_convolution_may_work_in_place(act: nn.Module) -> None:
    model = Net(lambda net, x: net.act(net.conv(x)), act).eval()
    assert found(model) == ("act",)
    with torch.no_grad():
        expected = model(IMAGE)
        InplaceRelu(("act",)).apply(model)
        assert torch.equal(model(IMAGE), expected)


def test_an_activation_after_a_residual_sum_may_work_in_place() -> None:
    def body(net: Any, x: torch.Tensor) -> torch.Tensor:
        y = net.conv(x)
        y += x
        return net.act(y)

    assert found(Net(body)) == ("act",)


def test_an_activation_after_a_view_of_private_memory_may_work_in_place() -> None:
    assert found(Net(lambda net, x: net.act(net.conv(x).flatten(1)))) == ("act",)


def _cached(net: Any, x: torch.Tensor) -> torch.Tensor:
    net.last = net.conv(x)
    return net.act(net.last)


def _read_later_as_array(net: Any, x: torch.Tensor) -> Any:
    y = net.conv(x)
    array = y.numpy()
    return net.act(y), array


def _written_over_a_view(net: Any, x: torch.Tensor) -> torch.Tensor:
    y = net.conv(x)
    row = y[0]
    y += 1
    return net.act(y) + row


def _overlapping(net: Any, x: torch.Tensor) -> torch.Tensor:
    return net.act(net.conv(x).mean((2, 3), keepdim=True).expand(-1, -1, 8, 8))


def _sometimes_shared(net: Any, x: torch.Tensor) -> torch.Tensor:
    first = net.act(net.conv(x))
    return first + net.act(first)


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: net.act(x),
        lambda net, x: net.act(x.flatten(1)),
        lambda net, x: net.conv(net.act(x)),
        lambda net, x: (lambda y: net.act(y) + y)(net.conv(x)),
        lambda net, x: (lambda y: (net.act(y), y))(net.conv(x)),
        lambda net, x: (lambda y: (net.act(y), y[:, 0]))(net.conv(x)),
        lambda net, x: (lambda y: net.act(y[:, :1]) + y[:, :2].sum())(net.conv(x)),
        lambda net, x: (lambda y: net.act(y.detach()) + y)(net.conv(x)),
        lambda net, x: net.act(net.conv.weight) + x.sum(),
        _cached,
        _read_later_as_array,
        _written_over_a_view,
        _overlapping,
        _sometimes_shared,
    ],
)
def test_an_activation_whose_input_someone_else_has_stays_as_it_is(body: Any) -> None:
    assert found(Net(body)) == ()


def test_an_activation_whose_input_a_hook_keeps_stays_as_it_is() -> None:
    model = Net(lambda net, x: net.act(net.conv(x)))
    kept: list[torch.Tensor] = []
    model.conv.register_forward_hook(lambda module, args, output: kept.append(output))
    assert found(model) == ()


def test_an_activation_that_did_not_run_stays_as_it_is() -> None:
    assert found(Net(lambda net, x: net.conv(x))) == ()


def test_an_input_that_takes_another_way_counts_too() -> None:
    def body(net: Any, x: torch.Tensor) -> torch.Tensor:
        y = net.conv(x)
        return net.act(y) + y if len(x) > 2 else net.act(y)

    tries = [Trial((IMAGE,), {}, ""), Trial((torch.cat([IMAGE, IMAGE]),), {}, "")]
    assert inplace_activations(Net(body).eval(), tries).modules == ()
