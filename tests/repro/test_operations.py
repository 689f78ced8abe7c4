"""What the tracer takes of an operation: what means nothing is left out, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ptools.program.modules import Modules
from ptools.repro.recording.digests import Digester
from ptools.repro.recording.operations import Operation, operation_of
from ptools.repro.recording.tracer import Tracer

aten = torch.ops.aten


class Told:
    """An operation as it was recorded."""

    def __init__(self, operation: Operation, values: Any, generator: int | None, *more: Any):
        self.name = operation.name
        self.values = {value.name: value.digest for value in values}
        self.generator = generator
        self.unwritten = more[2]


def traced(program: Callable[[], object]) -> list[Told]:
    """The operations of a program."""
    told: list[Told] = []
    tracer = Tracer(
        Modules(), Digester(), lambda *given: told.append(Told(*given)), lambda *given: None
    )
    tracer.switch(True)
    try:
        program()
    finally:
        tracer.switch(False)
    return told


def only(told: list[Told], name: str) -> Told:
    (found,) = [one for one in told if one.name == f"aten::{name}"]
    return found


@pytest.mark.parametrize("func", [aten.view.default, aten.select.int, aten.t.default])
def test_views_compute_nothing(func: Any) -> None:
    assert operation_of(func).silent


@pytest.mark.parametrize("func", [aten.add.Tensor, aten.add_.Tensor, aten.mm.default])
def test_what_computes_is_not_silent(func: Any) -> None:
    assert not operation_of(func).silent


@pytest.mark.parametrize(
    "func", [aten.rand.default, aten.normal_.default, aten.native_dropout.default]
)
def test_draws_are_known_by_the_tag_of_torch(func: Any) -> None:
    assert operation_of(func).random


def test_what_is_overwritten_is_not_read() -> None:
    assert "self" not in operation_of(aten.copy_.default).read
    assert "out" not in operation_of(aten.mm.out).read
    assert "self" in operation_of(aten.add_.Tensor).read
    assert operation_of(aten.add_.Tensor).written == ("self",)


def test_a_read_of_memory_that_nothing_was_written_to_is_known() -> None:
    (added,) = traced(lambda: torch.empty(4) + 1)
    assert added.unwritten
    assert "input self" not in added.values


@pytest.mark.parametrize(
    "fill",
    [
        lambda x: x.zero_(),
        lambda x: x.fill_(2),
        lambda x: x.copy_(torch.ones(4)),
        lambda x: x.normal_(),
        lambda x: torch.add(torch.ones(4), 1, out=x),
    ],
)
def test_memory_that_was_filled_is_read_like_any_other(fill: Callable[..., object]) -> None:
    def program() -> None:
        memory = torch.empty(4)
        fill(memory)
        memory.mul(3)

    read = only(traced(program), "mul")
    assert not read.unwritten
    assert "input self" in read.values


def test_inputs_arguments_and_outputs_have_digests() -> None:
    def program(other: float) -> Callable[[], object]:
        return lambda: torch.ones(3).mul(other)

    first, same, another = (only(traced(program(x)), "mul") for x in (2.0, 2.0, 3.0))
    assert first.values == same.values
    assert {name for name in first.values if first.values[name] != another.values[name]} == {
        "input other" if "input other" in first.values else "argument other",
        "output",
    }


def test_what_is_written_in_place_has_a_digest() -> None:
    def program(start: float) -> Callable[[], object]:
        def run() -> None:
            x, y = torch.full((3,), start), torch.zeros(3)
            torch._foreach_add_([y, x], 1)

        return run

    first, other = (only(traced(program(start)), "_foreach_add_") for start in (1.0, 2.0))
    assert first.values["written self[0]"] == other.values["written self[0]"]
    assert first.values["written self[1]"] != other.values["written self[1]"]


def test_a_draw_tells_the_state_of_its_generator() -> None:
    def program(seed: int) -> Callable[[], object]:
        return lambda: torch.rand(3, generator=torch.Generator().manual_seed(seed))

    states = [only(traced(program(seed)), "rand").generator for seed in (1, 1, 2)]
    assert states[0] is not None
    assert states[0] == states[1] != states[2]


def test_the_scratch_memory_of_a_recurrent_layer_means_nothing() -> None:
    layer, x = nn.LSTM(4, 5), torch.randn(3, 2, 4)
    told = traced(lambda: layer(x)[0].sum().backward())
    layers = [one for one in told if "rnn_layer" in one.name]
    if not layers:
        pytest.skip("this torch has no oneDNN, and no scratch memory either")
    forward, backward = layers
    assert {"output 0", "output 1", "output 2"} <= forward.values.keys()
    assert "output 3" not in forward.values
    assert "input input" in backward.values
    assert "input workspace" not in backward.values


def test_a_program_that_is_traced_twice_tells_the_same() -> None:
    def program() -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2))
        optimizer = torch.optim.Adam(net.parameters(), foreach=True)
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.randn(2, 1, 6, 6)).square().mean().backward()
            optimizer.step()

    first, second = traced(program), traced(program)
    assert [(one.name, one.values) for one in first] == [(two.name, two.values) for two in second]
    assert len(first) > 40
