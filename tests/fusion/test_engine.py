"""What fuse refuses because nothing would be shown, and what it makes of data and tolerances."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ptools.errors import PtoolsError, UsageError
from ptools.fusion import fuse

Trained = Callable[..., nn.Module]
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.bn(self.conv(x))


class Broken(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x) * float("nan")


class Silent(Net):
    def forward(self, x: torch.Tensor) -> Any:
        super().forward(x)


@pytest.mark.parametrize("kind", [Broken, Silent])
def test_what_can_not_be_compared_is_not_called_equal(kind: type[nn.Module]) -> None:
    with pytest.raises(PtoolsError, match="holds no finite number"):
        fuse(kind().eval(), X, latency=False)


class Restless(Net):
    """Random numbers of a generator that nobody seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x: torch.Tensor) -> Any:
        self.generator.seed()
        return super().forward(x) + torch.rand(1, generator=self.generator)


def test_a_model_that_says_something_else_each_time_is_refused() -> None:
    with pytest.raises(PtoolsError, match="two runs with one input differ"):
        fuse(Restless().eval(), X, latency=False)


@pytest.mark.parametrize(
    "wish", [{"dtype": "bf16"}, {"dtype": torch.int8}, {"tolerance": -1}, {"tolerance": 0}]
)
def test_wishes_that_make_no_sense_are_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        fuse(Net().eval(), X, latency=False, **wish)


def test_without_inputs_the_first_batch_of_the_data_is_the_input(trained: Trained) -> None:
    data = TensorDataset(torch.randn(40, 3, 9, 7), torch.zeros(40))
    report = fuse(trained(Net()), data=data, latency=False)
    assert (report.inputs, report.input_source) == ("32x3x9x7 float32", "given")
    assert report.folded == 1


def test_an_option_is_held_to_the_tolerance_that_was_asked_for(trained: Trained) -> None:
    model = trained(Net())
    strict = fuse(model, X, dtype=torch.bfloat16, tolerance=1e-5, latency=False)
    assert strict.variants[0].problem is not None
    assert next(strict.model.parameters()).dtype == torch.float32
    usual = fuse(model, X, dtype=torch.bfloat16, latency=False)
    assert next(usual.model.parameters()).dtype == torch.bfloat16
