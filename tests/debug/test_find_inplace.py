"""`with ptools.find_inplace() as found:` in a script or a notebook."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ptools


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x).sigmoid()
        h += x
        return h.sum()


def test_the_block_ends_at_the_finding_and_the_program_goes_on() -> None:
    net, reached = Net(), False
    with ptools.find_inplace() as found:
        net(torch.randn(2, 3)).backward()
        reached = True
    assert not reached
    assert found.first is not None
    changed, saved = found.first.place("changed"), found.first.place("saved")
    assert changed is not None and changed.source == "h += x"
    assert saved is not None and saved.source == "h = self.layer(x).sigmoid()"
    assert changed.module == "Net"
    with pytest.raises(RuntimeError, match="inplace operation"):  # as ever, after the block
        net(torch.randn(2, 3)).backward()


def test_the_printed_page_holds_both_lines_and_what_to_write() -> None:
    with ptools.find_inplace() as found:
        Net()(torch.randn(2, 3)).backward()
    page = str(found)
    for text in ("h += x", "h = self.layer(x).sigmoid()", "write h = h + x"):
        assert text in page


def test_a_model_that_is_given_gives_the_names() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    with ptools.find_inplace(net) as found:
        loss = net[1](net[0](torch.randn(2, 3))).sum()
        with torch.no_grad():
            net[1].weight.zero_()
        loss.backward()
    assert found.first is not None
    assert "Sequential.1.weight" in found.first.summary


def test_a_block_without_a_bug_leaves_everything_as_it_was() -> None:
    layer = nn.Linear(3, 1)
    with ptools.find_inplace() as found:
        layer(torch.ones(2, 3)).sum().backward()
    assert not found
    assert found.findings == ()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[2.0, 2.0, 2.0]]
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def test_an_error_of_the_programs_own_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), ptools.find_inplace():
        1 / 0  # noqa: B018


def test_a_block_within_a_block_finds_what_is_its_own() -> None:
    with ptools.find_inplace() as outer:
        with ptools.find_inplace() as inner:
            Net()(torch.randn(2, 3)).backward()
        nn.Linear(3, 1)(torch.ones(2, 3)).sum().backward()
    assert inner.first is not None
    assert not outer


def test_a_block_without_a_backward_says_so() -> None:
    with ptools.find_inplace() as found:
        nn.Linear(3, 1)(torch.ones(2, 3))
    assert found.notes == ("no backward was called: there was nothing to compare",)
