"""Graphs that outlive their step: who keeps them, and where they grow together."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

LOOP = """
import torch
from collections import deque
from torch import nn

class Meter:
    def __init__(self):
        self.total = 0

    def update(self, value):
        self.total = self.total + value{meter}

def train(net, optimizer, steps=8):
    losses, total, meter, window = [], 0, Meter(), deque(maxlen=2)
    for _ in range(steps):
        loss = net(torch.randn(3, 4)).pow(2).mean(){loss}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        {keep}

net = nn.Linear(4, 2)
train(net, torch.optim.SGD(net.parameters(), 0.1))
"""


@pytest.mark.parametrize(
    ("keep", "name"),
    [
        ("total = total + loss  # <- made", "total"),
        ("losses.append(loss)", "losses"),
        ("losses.append({'loss': loss})", "losses"),
        ("meter.update(loss)", "total"),
    ],
)
def test_the_variable_that_keeps_the_graphs_of_all_steps_is_named(
    follow: Any, keep: str, name: str
) -> None:
    marks = {
        "loss": "  # <- made" if "append" in keep else "",
        "meter": "  # <- made" if "meter" in keep else "",
    }
    seen = follow(LOOP.format(keep=keep, **marks))
    assert seen.kinds == ["kept-graph"]
    assert seen.marked()
    assert name in seen.findings[0].summary


@pytest.mark.parametrize(
    "keep",
    [
        "total += loss.item()",
        "losses.append(loss.detach())",
        "best = loss",
        "window.append(loss)",
        "meter.update(float(loss))",
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_a_number_or_a_few_graphs_may_be_kept(follow: Any, keep: str) -> None:
    assert not follow(LOOP.format(keep=keep, loss="", meter="")).findings


def test_losses_kept_within_one_step_are_no_growth(follow: Any) -> None:
    text = """
import torch
net = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for step in range(4):
    losses = []
    for _ in range(6):
        losses.append(net(torch.randn(3, 4)).pow(2).mean() / 6)
        losses[-1].backward()
    optimizer.step()
    optimizer.zero_grad()
"""
    assert not follow(text).findings


RECURRENT = """
import torch
from torch import nn

cell = nn.RNNCell(4, 4)
state = torch.zeros(2, 4)
for _ in range(8):
    state = cell(torch.randn(2, 4), state{detach})  {marks}
    loss = state.pow(2).mean()
    loss.backward({arguments})
"""


def test_a_state_that_is_not_detached_makes_each_backward_longer(follow: Any) -> None:
    text = RECURRENT.format(detach="", marks="# <- read", arguments="retain_graph=True")
    seen = follow(text)
    assert seen.kinds == ["grown-graph"]
    assert seen.marked()


def test_a_second_backward_through_an_earlier_step_is_explained(follow: Any) -> None:
    seen = follow(
        RECURRENT.format(detach="", marks="# <- read", arguments=""), fails="a second time"
    )
    assert seen.kinds == ["second-backward"]
    assert seen.marked()


def test_a_detached_state_is_clean(follow: Any) -> None:
    assert not follow(RECURRENT.format(detach=".detach()", marks="", arguments="")).findings


def test_nothing_is_left_behind(follow: Any) -> None:
    from torch.nn.modules import module
    from torch.optim import Optimizer

    before = (
        Optimizer.__init__,
        torch.autograd.backward,
        torch.overrides.has_torch_function,
        torch._C._len_torch_function_stack(),
        len(module._global_forward_hooks),
        len(module._global_parameter_registration_hooks),
    )
    follow(LOOP.format(keep="pass", loss="", meter=""))
    assert before == (
        Optimizer.__init__,
        torch.autograd.backward,
        torch.overrides.has_torch_function,
        torch._C._len_torch_function_stack(),
        len(module._global_forward_hooks),
        len(module._global_parameter_registration_hooks),
    )


def test_nothing_is_kept_alive_while_the_program_runs(follow: Any) -> None:
    text = """
import torch, weakref
alive = []
def once():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(5):
        out = net(torch.randn(3, 4))
        loss = out.pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [weakref.ref(one) for one in (net, net[0].weight, out, loss)]
refs = once()
import gc
gc.collect()
print([ref() is None for ref in refs])
"""
    assert follow(text).printed == "[True, True, True, True]\n"
