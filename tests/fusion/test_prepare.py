"""What can't be fused is refused in one sentence, and weights that look untrained are warned of."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ptools.errors import UsageError
from ptools.fusion.prepare import check, is_norm

Trained = Callable[..., nn.Module]


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    )


def refusal(model: Any) -> tuple[str, str | None]:
    with pytest.raises(UsageError) as caught:
        check(model)
    return caught.value.message, caught.value.hint


def test_a_trained_model_in_eval_mode_passes(trained: Trained) -> None:
    assert check(trained(net())) == ()


def test_only_modules_can_be_fused() -> None:
    message, _ = refusal({"weight": torch.ones(1)})
    assert message == "only a model can be fused, and this is of type dict"


def test_training_mode_is_refused(trained: Trained) -> None:
    message, hint = refusal(trained(net()).train())
    assert message == "2 of 2 batch norms are in training mode (1, ...)"
    assert hint.startswith("call model.eval() first")


def test_a_model_that_stays_in_training_mode_is_told_where_to_look(trained: Trained) -> None:
    class Stubborn(nn.Sequential):
        def train(self, mode: bool = True) -> "Stubborn":
            return super().train(True)

    _, hint = refusal(Stubborn(*trained(net())).eval())
    assert "train() of its own" in hint


def test_one_norm_in_training_mode_is_refused(trained: Trained) -> None:
    model = trained(net())
    model[4].train()  # type: ignore[operator, index]
    assert refusal(model)[0] == "1 of 2 batch norms is in training mode (4)"


def test_training_mode_is_refused_without_norms() -> None:
    assert refusal(nn.Conv2d(1, 1, 1))[0] == "the model is in training mode"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused_also_within(trained: Trained) -> None:
    script = torch.jit.trace(trained(net()), torch.randn(1, 2, 8, 8))
    hint = "fuse the model it was made from"
    assert refusal(script) == (f"{type(script).__name__} is TorchScript", hint)
    assert refusal(nn.Sequential(nn.ReLU(), script).eval()) == ("1 is TorchScript", hint)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_parts_are_refused(trained: Trained) -> None:
    model = trained(net())
    model[0] = torch.compile(model[0])  # type: ignore[operator, index]
    hint = "fuse the model first, then compile it"
    assert refusal(model) == ("0 is compiled", hint)
    model = trained(net())
    model.compile()
    assert refusal(model) == ("Sequential is compiled", hint)


def test_weights_that_were_never_loaded_are_refused() -> None:
    with torch.device("meta"):
        model = net().eval()
    assert refusal(model)[0] == "14 of 14 weights are on the meta device (0.weight, ...)"


def test_lazy_weights_are_refused() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)).eval()
    assert refusal(model)[0] == "2 of 7 weights are lazy and have no values yet (0.weight, ...)"


def test_a_class_in_place_of_a_model_is_to_be_called() -> None:
    assert refusal(nn.BatchNorm2d)[1] == "build it first: BatchNorm2d(...)"


def test_weights_that_are_no_numbers_are_warned_of(trained: Trained) -> None:
    model: Any = trained(net())
    model[1].running_var[0] = float("nan")
    model.register_buffer("mask", torch.tensor([float("-inf")]))  # as attention has it
    (warning,) = check(model)
    assert "1.running_var" in warning and "NaN" in warning and "mask" not in warning


@pytest.mark.parametrize("weight", [torch.eye(4).to(torch.float8_e4m3fn), torch.eye(4).to_sparse()])
def test_weights_that_can_not_be_asked_for_nan_are_passed_over(weight: torch.Tensor) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    model[0].weight = nn.Parameter(weight, requires_grad=False)
    assert check(model) == ()


def test_norms_that_were_never_trained_are_warned_of(trained: Trained) -> None:
    model = trained(net())
    model[4].reset_running_stats()  # type: ignore[operator, index]
    assert check(model) == (
        "1 of 2 batch norms was never trained (4): "
        "are these the model's weights? --ckpt loads them",
    )


def test_statistics_without_a_count_are_trained(trained: Trained) -> None:
    model = trained(net())
    for module in (model[1], model[4]):  # type: ignore[index]
        module.num_batches_tracked.zero_()
    assert check(model) == ()


def test_frozen_norms_have_no_count(trained: Trained) -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(4))
            self.register_buffer("running_var", torch.ones(4))

    assert check(nn.Sequential(Frozen()).eval())[0].startswith("1 of 1 batch norms was never")


def test_what_counts_as_a_batch_norm() -> None:
    assert is_norm(nn.BatchNorm1d(2, affine=False))
    assert is_norm(nn.BatchNorm3d(2, track_running_stats=False))
    assert is_norm(nn.SyncBatchNorm(2))
    assert not is_norm(nn.InstanceNorm2d(2, track_running_stats=True))
    assert not is_norm(nn.GroupNorm(1, 2))
