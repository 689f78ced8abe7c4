"""Activations in place: only where nobody reads what they overwrite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptools.errors import PtoolsError, UsageError
from ptools.train.memory import inplace
from ptools.train.memory.inplace import inplace_activations

X = torch.linspace(-2, 2, 32).view(4, 8)


class One(nn.Module):
    """A layer, then whatever a test wants to do with its output and an activation."""

    def __init__(self, body: Callable[..., torch.Tensor], act: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(8, 8)
        self.act = act or nn.ReLU()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self, x)


def keeps(model: One, x: torch.Tensor) -> torch.Tensor:
    model.last = model.fc(x)
    return model.act(model.last)


def in_evaluation(model: One, x: torch.Tensor) -> torch.Tensor:
    h = model.fc(x)
    return model.act(h) if model.training else model.act(h) + h


REFUSED: dict[str, Callable[[One, torch.Tensor], object]] = {
    "after a sigmoid": lambda m, x: m.act(torch.sigmoid(m.fc(x))),
    "before a residual add": lambda m, x: _added(m.fc(x), m.act),
    "through a view": lambda m, x: _added(m.fc(x), lambda h: m.act(h.view(-1)).view(4, 8)),
    "the model's input": lambda m, x: m.fc(m.act(x)),
    "a returned feature": lambda m, x: _both(m.fc(x), m.act),
    "a cached feature": keeps,
    "read in evaluation alone": in_evaluation,
    "behind autograd's back": lambda m, x: _added(m.fc(x), m.act, lambda h: h.detach()),
    "a parameter": lambda m, x: F.linear(x, m.act(m.fc.weight)),
}


def _added(
    h: torch.Tensor,
    act: Callable[[torch.Tensor], torch.Tensor],
    read: Callable[[torch.Tensor], torch.Tensor] = lambda h: h,
) -> torch.Tensor:
    return act(h) + read(h)


def _both(h: torch.Tensor, act: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return h, act(h)


@pytest.mark.parametrize("name", REFUSED)
def test_an_activation_is_left_as_it_is_where_its_input_is_read_again(name: str) -> None:
    model = One(REFUSED[name])  # type: ignore[arg-type]
    report = inplace_activations(model, X)
    assert report.changed == ()
    assert list(report.refused) == ["act"]
    assert model.act.inplace is False


def test_numbers_that_hide_the_error_do_not_hide_it_from_the_check() -> None:
    """A ReLU of what is positive changes nothing: with this example all would seem well."""
    model = One(lambda m, x: _added(m.fc(x).abs() + 1, m.act))
    assert inplace_activations(model, X).changed == ()


@pytest.mark.parametrize("kind", inplace._KINDS, ids=lambda kind: kind.__name__)
def test_after_a_layer_it_is_in_place(kind: type[nn.Module]) -> None:
    act = kind()
    shapes = {nn.Dropout1d: (2, 2, 8), nn.Dropout2d: (2, 2, 2, 4), nn.Dropout3d: (2, 2, 2, 2, 2)}
    view = shapes.get(kind, (4, 8))
    model = One(lambda m, x: m.act(m.fc(x).view(view)) * 2, act)
    report = inplace_activations(model, X)
    assert report.changed == ("act",)
    assert act.inplace is True


@pytest.mark.parametrize(
    "kind", [nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Mish]
)
def test_kinds_of_which_torch_copies_the_input_are_left_out(kind: type[nn.Module]) -> None:
    """Were this to fail, there would be memory to save."""
    assert kind not in inplace._KINDS
    x = torch.randn(10, requires_grad=True) * 1.0
    x.add_(0)
    act = kind(inplace=True)
    kept = set()
    pack = lambda one: kept.add(one.data_ptr()) or one  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        act(x)
    assert kept - {x.data_ptr()}


def test_of_many_those_are_found_that_cannot_be() -> None:
    layers: list[nn.Module] = []
    for number in range(12):
        between = nn.Sigmoid() if number in (3, 8) else nn.Identity()
        layers.append(nn.Sequential(nn.Linear(8, 8), between, nn.LeakyReLU()))
    report = inplace_activations(nn.Sequential(*layers), X)
    assert list(report.refused) == ["3.2", "8.2"]
    assert len(report.changed) == 10
    assert "is output 0 of Sigmoid" in report.refused["3.2"]
    assert str(report).splitlines()[0].startswith("10 activations in place: 0.2, 1.2, 2.2, 4.2")
    assert str(report).splitlines()[1].startswith("not 3.2: ")


def test_two_that_can_be_in_place_each_but_not_both() -> None:
    """In place, a leaky ReLU needs its output, which the dropout would overwrite."""
    model = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(), nn.Dropout(), nn.Linear(8, 8))
    report = inplace_activations(model, X)
    assert len(report.changed) == 1
    model.train()(X).sum().backward()


def test_a_changed_model_trains_to_the_same_gradients() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.LeakyReLU())
    model, x = nn.Sequential(*layers), torch.randn(2, 3, 8, 8)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(x).square().sum().backward()
        return [one.grad.clone() for one in model.parameters()]  # type: ignore[union-attr]

    before = gradients()
    assert inplace_activations(model, x).changed == ("2", "4")
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))


def test_nothing_but_the_flags_is_changed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU())
    model[1].eval()
    state = {name: one.clone() for name, one in model.state_dict().items()}
    random, x = torch.get_rng_state(), X.clone()
    inplace_activations(model, x)
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    assert [one.training for one in model] == [True, False, True, True]
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(x, X)
    assert all(one.grad is None for one in model.parameters())
    assert not any(one._forward_pre_hooks for one in model.modules())


def test_what_the_example_does_not_reach_is_not_proven() -> None:
    model = One(lambda m, x: m.fc(x))
    assert inplace_activations(model, (X,)).refused == {"act": "the example did not reach it"}
    assert str(inplace_activations(model, {"x": X})) == (
        "0 activations in place\nnot act: the example did not reach it"
    )


def test_an_input_that_needs_a_gradient_gets_the_same() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).requires_grad_(False)
    x = X.clone().requires_grad_()
    assert inplace_activations(model, x).changed == ("1",)
    assert x.grad is None


def test_a_model_that_cannot_be_checked_is_refused() -> None:
    with pytest.raises(UsageError, match="no output of the model needs a gradient"):
        inplace_activations(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).requires_grad_(False), X)
    count = iter(range(100))
    with pytest.raises(PtoolsError, match="does not give the same result twice"):
        inplace_activations(One(lambda m, x: m.act(m.fc(x)) + next(count)), X)
