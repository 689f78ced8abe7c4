"""Mode `watch`, in this process: what it sees, and what it leaves alone."""

import math
from collections.abc import Callable

import pytest
import torch
from run_in import run_in
from torch import nn

from ptools.debug.mode import Log, Stop, watching
from ptools.debug.watch import SKIPPED_IN_A_ROW, Watch
from ptools.program.clock import Clock
from ptools.program.modules import Modules


def watched(program: Callable[[], object]) -> Log:
    """What mode `watch` logs of a program."""
    return run_in(Watch(Log(), Clock(), Modules()), program)


def kinds(program: Callable[[], object]) -> list[str]:
    """The kinds of what it found."""
    return [finding.kind for finding in watched(program).findings]


def one_step(gradient: torch.Tensor, **options: float) -> Callable[[], None]:
    """A program whose only gradient is this one."""

    def program() -> None:
        weights = nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
        optimizer = torch.optim.SGD([weights], **{"lr": 0.1, **options})
        weights.grad = gradient
        optimizer.step()

    return program


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_seen_at_its_step(value: float) -> None:
    def program() -> None:
        weights = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weights], 0.1)
        for step in range(5):
            loss = weights.sum() * (value if step == 3 else 1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    (finding,) = watched(program).findings
    assert (finding.kind, finding.step, finding.tick) == ("nonfinite-loss", 3, 3)


def test_a_loss_of_several_numbers_is_seen() -> None:
    def program() -> None:
        losses = nn.Parameter(torch.ones(2)) * torch.tensor([1.0, math.nan])
        losses.backward(torch.ones(2))

    assert kinds(program) == ["nonfinite-loss"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named(value: float) -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def program() -> None:
        model[1].bias.register_hook(lambda gradient: gradient * value)
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()

    (finding,) = watched(program).findings
    assert finding.kind == "nonfinite-gradient"
    assert finding.summary == "the gradient of Sequential.1.bias is not finite"


@pytest.mark.parametrize("size", [4, 200_000])
def test_a_gradient_of_each_size_type_and_layout_is_read_right(size: int) -> None:
    bad = torch.ones(size)
    bad[-1] = math.nan
    halves = torch.ones(size, dtype=torch.float16)
    sparse = torch.sparse_coo_tensor([[1]], [1.0], (size,))
    assert kinds(one_step(bad)) == ["nonfinite-gradient"]
    assert kinds(one_step(halves * math.inf)) == ["nonfinite-gradient"]
    assert kinds(one_step(sparse * math.nan)) == ["nonfinite-gradient"]
    assert kinds(one_step(torch.full((size,), 1e38))) == []  # its sum and squares overflow
    assert kinds(one_step(halves * 60000)) == []
    assert kinds(one_step(sparse)) == []
    assert kinds(one_step(torch.ones(size, dtype=torch.complex64))) == []


def test_gradients_of_several_types_are_read_together() -> None:
    def program() -> None:
        weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2).double())]
        optimizer = torch.optim.SGD(weights, 0.1)
        weights[0].grad = torch.ones(2)
        weights[1].grad = torch.tensor([1.0, math.nan]).double()
        optimizer.step()

    assert kinds(program) == ["nonfinite-gradient"]


def test_a_parameter_lost_in_the_last_step_is_seen_at_the_end() -> None:
    weights = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weights], 3e38)

    def program() -> None:
        (weights * 1e10).sum().backward()
        optimizer.step()

    assert kinds(program) == ["nonfinite-parameter"]


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_are_left_alone(fused: bool) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)

    def program() -> None:
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(torch.full((1, 1), 1e12)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()

    assert kinds(program) == []


def test_a_scaler_that_skips_for_ever_is_seen() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu")

    def program() -> None:
        model.weight.register_hook(lambda gradient: gradient * math.nan)
        for _ in range(2 * SKIPPED_IN_A_ROW):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(1, 1)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()

    assert kinds(program) == ["scaler"]


def test_closures_and_accumulation_and_several_optimizers_are_left_alone() -> None:
    model = nn.Linear(2, 1)

    def program() -> None:
        first = torch.optim.LBFGS(model.parameters(), max_iter=4)
        second = torch.optim.SGD(model.parameters(), 0.1)

        def closure() -> torch.Tensor:
            first.zero_grad()
            loss = (model(torch.ones(3, 2)) - 1).square().mean()
            loss.backward()
            return loss

        for _ in range(2):
            first.step(closure)
            for _ in range(2):
                model(torch.ones(1, 2)).sum().backward()
            second.step()

    assert kinds(program) == []


def test_what_was_not_watched_is_said() -> None:
    assert "--mode nan" in watched(lambda: torch.ones(2).sqrt()).notes[0]
    weights = nn.Parameter(torch.ones(1))
    assert "only the losses" in watched(lambda: weights.sum().backward()).notes[0]


def test_all_is_as_before_when_the_watch_ends() -> None:
    before = torch.autograd.backward, nn.Module.__call__, torch.amp.GradScaler.update
    watched(lambda: nn.Linear(1, 1)(torch.ones(1, 1)).sum().backward())
    assert before == (torch.autograd.backward, nn.Module.__call__, torch.amp.GradScaler.update)


def test_a_gradient_that_is_lost_between_two_looks_is_seen_soon_after() -> None:
    table, used = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([table, used], 0.1)
    mode = Watch(Log(), Clock(), Modules())

    def program() -> None:
        for step in range(100):
            loss = used.sum() + table[0] * 0
            optimizer.zero_grad()
            loss.backward()
            if step == 30:
                table.grad[3] = math.nan  # of a row that no later loss reads
            optimizer.step()

    with pytest.raises(Stop), watching(mode):
        program()
    (finding,) = mode.log.findings
    assert finding.kind == "nonfinite-parameter"
    assert mode.good_until <= 30 < mode.clock.ticks <= 40


def test_the_optimizer_that_steps_seldom_is_looked_at_too() -> None:
    seldom, often = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizers = torch.optim.SGD([often], 0.1), torch.optim.SGD([seldom], 0.1)

    def program() -> None:
        for step in range(40):
            often.grad = torch.ones(1)
            optimizers[0].step()
            if step % 2:
                seldom.grad = torch.tensor([math.nan]) if step == 21 else torch.ones(1)
                optimizers[1].step()
            assert step < 30

    assert kinds(program) == ["nonfinite-parameter"]
