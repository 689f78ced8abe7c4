"""Every batch norm that stays has a reason, and the reason is true."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptools.fusion.observe import observe
from ptools.fusion.prove import Proof, prove
from ptools.fusion.reasons import grouped, left
from ptools.fusion.report import Left


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 2, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(2)


def reasons(model: nn.Module, shape: tuple[int, ...] = (2, 2, 8, 8)) -> dict[str, str]:
    """Those of all norms, as if none had been folded."""
    trace, _ = observe(model.eval(), (torch.randn(shape),), {})
    return {each.name: each.reason for each in left(model, trace, prove(model, trace), model)}


def net(forward: Callable[[nn.Module, torch.Tensor], object]) -> nn.Module:
    """A convolution and a batch norm with any forward."""
    return type("Some", (Net,), {"forward": forward})()


def test_a_norm_after_something_else() -> None:
    assert reasons(net(lambda m, x: m.bn1(m.conv1(x).relu_()))) == {
        "bn1": "follows relu, not a convolution"
    }
    assert reasons(net(lambda m, x: m.bn1(F.relu6(m.conv1(x)))))["bn1"].startswith("follows relu6,")
    assert reasons(net(lambda m, x: m.bn1(F.max_pool2d(x, 2)))) == {
        "bn1": "follows max_pool2d, not a convolution"
    }
    assert reasons(net(lambda m, x: m.bn1(x).relu())) == {
        "bn1": "follows an input of the model, not a convolution"
    }


def test_a_norm_of_joined_channels() -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(2, 2, 1), "bn": nn.BatchNorm2d(4)})
    joined = type("Joined", (nn.ModuleDict,), {})()
    joined.update(model)
    type(joined).forward = lambda m, x: m["bn"](torch.cat([m["conv"](x), x], 1))
    assert reasons(joined) == {"bn": "follows cat, which joins several outputs"}


def test_a_list_of_one_that_is_joined_is_looked_through() -> None:
    model = net(lambda m, x: m.bn1(torch.cat([m.conv1(x).relu()], 1)))
    assert reasons(model) == {"bn1": "follows relu, not a convolution"}


def test_another_user_of_the_convolution_is_named() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = m.conv1(x)
        return m.bn1(y) + y.sigmoid() + y

    reason = "its convolution's output is also used by sigmoid and add"
    assert reasons(net(forward)) == {"bn1": reason}


def test_a_convolution_that_is_returned() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = m.conv1(x)
        return m.bn1(y), y

    assert reasons(net(forward)) == {"bn1": "its convolution's output is returned or kept"}


def test_a_weight_that_is_computed() -> None:
    model = net(lambda m, x: m.bn1(F.conv2d(x, m.conv1.weight * 2)))
    assert reasons(model) == {"bn1": "its convolution's weight is computed (by mul)"}


def test_a_product_of_two_values() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(x.mm(x.t()))

    assert reasons(Product(), (4, 4)) == {"bn": "follows mm of two values, not a convolution"}


def test_a_view_that_mixes_the_channels() -> None:
    model = net(lambda m, x: m.bn1(m.conv1(x).transpose(1, 2)[:, :2]))
    assert reasons(model) == {"bn1": "follows slice, not a convolution"}
    square = net(lambda m, x: m.bn1(m.conv1(x).transpose(1, 2)))
    shape = (1, 2, 2, 4)
    assert reasons(square, shape) == {"bn1": "transpose stands between it and its convolution"}


def test_a_norm_before_a_convolution_that_pads() -> None:
    assert reasons(net(lambda m, x: m.conv1(m.bn1(x.relu())))) == {
        "bn1": "before conv1, which pads with zeros"
    }


def test_a_norm_that_is_called_as_a_function() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        norm = m.bn1
        return F.batch_norm(
            m.conv1(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )

    assert reasons(net(forward)) == {"bn1": "called as a function, not as a module"}


def test_a_norm_that_did_not_run() -> None:
    assert reasons(net(lambda m, x: m.conv1(x))) == {"bn1": "did not run with these inputs"}


def test_a_norm_without_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    assert reasons(model) == {"1": "keeps no running statistics"}


def test_a_norm_in_training_mode() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    trace, _ = observe(model.eval(), (torch.randn(2, 2, 4, 4),), {})
    model[1].train()
    assert [each.reason for each in left(model, trace, Proof(), model)] == ["in training mode"]


def test_what_the_proof_says_comes_before_the_dataflow() -> None:
    model = net(lambda m, x: m.bn1(m.conv1(x)))
    trace, _ = observe(model.eval(), (torch.randn(2, 2, 8, 8),), {})
    proof = prove(model, trace)
    proof.refuse(next(iter(proof.folds)), "the numbers do not hold")
    assert left(model, trace, proof, model) == (
        Left("bn1", "BatchNorm2d", "the numbers do not hold"),
    )


def test_a_norm_that_is_gone_needs_no_reason() -> None:
    model = net(lambda m, x: m.bn1(m.conv1(x)))
    trace, _ = observe(model.eval(), (torch.randn(2, 2, 8, 8),), {})
    assert left(model, trace, prove(model, trace), nn.Module()) == ()


@pytest.mark.parametrize("recurrent", [False, True])
def test_a_norm_of_two_convolutions(recurrent: bool) -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.conv2 = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn1(self.conv1(x)).relu()
            return self.bn1(self.conv2(y) if not recurrent else y)

    assert reasons(Two()) == {"bn1": "bn1 runs 2 times, 1 of them in this way"}


def test_names_are_grouped_by_reason() -> None:
    found = [Left("a", "", "x"), Left("b", "", "y"), Left("c", "", "y")]
    assert grouped(found) == [("y", ["b", "c"]), ("x", ["a"])]
