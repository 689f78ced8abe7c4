"""Leaks from step to step: the line that made what is kept, and the variable that keeps it."""

import copy
import gc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from ptools.debug.findings import Finding
from ptools.debug.memory.mode import Memory
from ptools.debug.mode import Log, watching
from ptools.debug.variables import Variables
from ptools.program.clock import Clock
from ptools.program.modules import Modules

EachStep = Callable[[nn.Module, torch.Tensor], object]


def found(program: Callable[[], object]) -> list[Finding]:
    mode = Memory(Log(True), Clock(), Modules())
    with watching(mode):
        program()
    mode.finish()
    return mode.log.findings


def train(each: EachStep, steps: int = 20, batches: Iterator[int] | None = None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(steps):
        x = torch.randn(next(batches) if batches else 32, 64)
        net(x).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        each(net, x)


def test_losses_kept_with_their_graphs_are_named_with_the_line_that_made_them() -> None:
    def program() -> None:
        losses: list[torch.Tensor] = []

        def evaluate(net: nn.Module, x: torch.Tensor) -> None:
            loss = net(x).mean()  # <- kept
            losses.append(loss)

        train(evaluate)

    (finding,) = found(program)
    assert finding.kind == "leak"
    assert "losses (list in " in finding.summary
    assert "keeps a graph" in finding.summary
    assert finding.where is not None
    assert finding.where.source.endswith("# <- kept")
    assert ".item()" in finding.advice


def test_outputs_kept_without_a_graph_are_a_leak_too() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.history: list[torch.Tensor] = []

        def __call__(self, net: nn.Module, x: torch.Tensor) -> None:
            self.history.append(net(x).detach().clone())

    recorder = Recorder()
    (finding,) = found(lambda: train(recorder))
    assert finding.summary.startswith("Recorder.history (list) grows: 1 tensor")
    assert "deque" in finding.advice


def test_a_state_that_is_never_detached_is_named() -> None:
    def program() -> None:
        cell, state = nn.GRUCell(16, 32), torch.zeros(4, 32)
        for _ in range(16):
            state = cell(torch.randn(4, 16), state)  # <- carried
            loss = state.mean()
            loss.backward(retain_graph=True)

    (finding,) = found(program)
    assert "state (in " in finding.summary
    assert finding.where is not None
    assert finding.where.source.endswith("# <- carried")
    assert "detach()" in finding.advice


def test_a_dictionary_of_a_module_is_named_by_its_attribute() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cache: dict[int, torch.Tensor] = {}
            self.linear = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.linear(x)
            self.cache[len(self.cache)] = out.detach() * 2
            return out

    def program() -> None:
        caching = Caching()
        train(lambda net, x: caching(x).sum().item())

    (finding,) = found(program)
    assert finding.summary.startswith("Caching.cache (dict) grows")


def test_a_leak_every_few_steps_is_found() -> None:
    kept: list[torch.Tensor] = []
    count = iter(range(1000))

    def each(net: nn.Module, x: torch.Tensor) -> None:
        if next(count) % 5 == 0:
            kept.append(x * 2)

    assert [one.kind for one in found(lambda: train(each, steps=80))] == ["leak"]


def test_clean_habits_are_no_leak() -> None:
    numbers: list[float] = []
    scalars: list[torch.Tensor] = []
    window: deque[torch.Tensor] = deque(maxlen=4)
    cache: dict[int, torch.Tensor] = {}

    def each(net: nn.Module, x: torch.Tensor) -> None:
        numbers.append(x.sum().item())
        scalars.append(x.sum().detach())  # a log of four bytes a step
        window.append(x * 2)
        cache.setdefault(len(numbers) % 5, x * 3)

    assert found(lambda: train(each, steps=40)) == []


def test_growing_batches_are_no_leak() -> None:
    assert found(lambda: train(lambda net, x: None, batches=iter(range(1, 100)))) == []


def test_evaluation_whose_results_are_dropped_each_epoch_is_no_leak() -> None:
    count = iter(range(1000))
    results: list[torch.Tensor] = []

    def each(net: nn.Module, x: torch.Tensor) -> None:
        results.append(x * 2)
        if next(count) % 10 == 9:
            results.clear()

    assert found(lambda: train(each, steps=45)) == []


def test_a_run_of_few_steps_is_not_judged() -> None:
    kept: list[torch.Tensor] = []
    assert found(lambda: train(lambda net, x: kept.append(x), steps=6)) == []


def test_without_steps_it_is_said_that_leaks_were_not_looked_for() -> None:
    mode = Memory(Log(True), Clock(), Modules())
    with watching(mode), nullcontext():
        nn.Linear(4, 4)(torch.randn(2, 4))
    mode.finish()
    assert any("no backward and no optimizer" in note for note in mode.log.notes)


def test_what_a_validation_keeps_now_and_then_is_named_though_its_function_is_gone() -> None:
    def program() -> None:
        kept: list[dict[str, torch.Tensor]] = []
        steps = iter(range(1, 61))

        def validate(net: nn.Module, x: torch.Tensor) -> None:
            if next(steps) % 5 == 0:
                kept.extend({"out": net(x)} for _ in range(5))

        train(validate, steps=60)

    (finding,) = found(program)
    assert finding.summary.startswith("kept (")


def test_a_leak_at_each_of_a_few_validations_is_found() -> None:
    def program() -> None:
        kept: list[torch.Tensor] = []
        steps = iter(range(1, 21))

        def validate(net: nn.Module, x: torch.Tensor) -> None:
            if next(steps) % 5 == 0:
                kept.extend(net(x) for _ in range(5))

        train(validate, steps=20)

    (finding,) = found(program)
    assert finding.summary.startswith("kept (")


@pytest.mark.parametrize("rises", [{5, 10, 15}, {3, 5, 13, 25}, {22, 25, 28}])
def test_what_grows_seldom_is_no_leak_unless_it_goes_on_regularly(rises: set[int]) -> None:
    cache: list[torch.Tensor] = []
    steps = iter(range(1, 1000))

    def each(net: nn.Module, x: torch.Tensor) -> None:
        if next(steps) in rises:
            cache.append(net(x))

    assert found(lambda: train(each, steps=30)) == []


def test_copies_of_the_best_few_models_are_no_leak() -> None:
    best: list[dict[str, torch.Tensor]] = []
    steps = iter(range(1, 1000))

    def each(net: nn.Module, x: torch.Tensor) -> None:
        if next(steps) % 5 == 0:
            best.append(copy.deepcopy(net.state_dict()))
            del best[3:]

    assert found(lambda: train(each, steps=18)) == []


def test_unfreezing_layer_after_layer_is_no_leak() -> None:
    mode = Memory(Log(True), Clock(), Modules())
    with watching(mode):
        weights = [nn.Parameter(torch.eye(64), requires_grad=place == 7) for place in range(8)]
        optimizer = torch.optim.Adam(weights)
        for step in range(1, 33):
            if step % 5 == 0:
                weights[7 - step // 5].requires_grad_(True)
            optimizer.zero_grad()
            x = torch.randn(32, 64)
            for weight in weights:
                x = torch.tanh(x @ weight)
            x.pow(2).mean().backward()
            optimizer.step()
    mode.finish()
    assert mode.log.findings == []
    assert not any("ever more" in note for note in mode.log.notes)


def test_a_variable_that_keeps_tensors_of_two_lines_is_one_finding_of_its_outer_type() -> None:
    def program() -> None:
        kept: list[dict[str, torch.Tensor]] = []

        def evaluate(net: nn.Module, x: torch.Tensor) -> None:
            out = net(x)  # <- larger
            loss = out.pow(2).mean()  # <- smaller
            kept.append({"out": out, "loss": loss})

        train(evaluate)

    (finding,) = found(program)
    assert finding.summary.startswith("kept (list in ")
    assert finding.where is not None
    lines = [finding.where.source, *finding.facts]
    assert sum(line.endswith("# <- larger") for line in lines) == 1
    assert sum(line.endswith("# <- smaller") for line in lines) == 1


def test_to_ask_who_keeps_many_tensors_takes_no_more_looks_than_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = []
    referrers = gc.get_referrers
    monkeypatch.setattr(gc, "get_referrers", lambda *args: looks.append(1) or referrers(*args))
    kept = {f"{number}": [torch.zeros(1)] for number in range(20)}
    things = [one for (one,) in kept.values()]
    known = Variables(Modules()).that_keep(things)
    assert {one.text.partition(" (")[0] for one in known.values()} == {"kept"}
    assert len(known) == 20
    assert len(looks) <= 3
