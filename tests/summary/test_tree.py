"""The layer tree: torchinfo's where it can, the same by our own walk."""

import pytest
import torch
from torch import nn

from ptools.summary import tree


def model():
    shared = nn.Linear(4, 4)
    inner = nn.Sequential(nn.Conv2d(3, 8, (3, 1)), shared)
    return nn.ModuleDict({"a": inner, "b": nn.Sequential(shared, nn.MaxPool2d(2)), "c": shared})


PATHS = ["", "a", "a.0", "a.1", "b", "b.0", "b.1", "c"]


def test_torchinfo_supplies_the_tree(monkeypatch):
    monkeypatch.delattr(tree, "_walk")
    found = tree.nodes(model())
    assert [node.path for node in found] == PATHS
    assert [node.depth for node in found] == [0, 1, 2, 2, 1, 2, 2, 1]
    assert [node.kernel for node in found if node.kernel] == ["3x1", "2"]
    assert tree.paths_of(found)[id(found[3].module)] == ["a.1", "b.0", "c"]


def test_it_is_never_given_an_input_or_a_device(monkeypatch):
    """With either it would run or move the model."""
    calls = []
    walk = tree.apply_hooks
    monkeypatch.setattr(tree, "apply_hooks", lambda *a, **k: calls.append((a, k)) or walk(*a, **k))
    root = model()
    tree.nodes(root)
    assert calls == [(("", root), {"input_data": None, "batch_dim": None})]


def test_parameters_are_back_afterwards():
    root = model()
    tree.nodes(root)
    assert len(list(root.parameters())) == 4
    assert "named_parameters" not in vars(root)


def test_our_walk_is_the_same():
    root = model()
    ours = [(n.path, id(n.module), n.depth, n.kernel) for n in tree._walk(root, "", 0)]
    theirs = [(n.path, id(n.module), n.depth, n.kernel) for n in tree.nodes(root)]
    assert ours == theirs


@pytest.mark.parametrize("depth", [1, 40])
def test_depth_costs_nothing(depth):
    """`torchinfo.summary` would take 2**40 steps."""
    root = nn.Linear(2, 2)
    for _ in range(depth):
        root = nn.Sequential(root)
    assert max(node.depth for node in tree.nodes(root)) == depth
    assert root(torch.zeros(1, 2)).shape == (1, 2)
