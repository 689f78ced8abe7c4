"""Whatever is handed to `fuse` comes back as it was, unless it is asked to work in place."""

import copy
import logging
import random
import threading

import numpy
import pytest
import torch
from torch import nn
from torch.nn.modules import module as modules

from ptools.fusion import fuse

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Has a method that replaces its parts, as RepVGG's blocks do."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)

    def fuse(self):
        self.conv = nn.utils.fuse_conv_bn_eval(self.conv, self.bn)
        self.bn = nn.Identity()

    def forward(self, x):
        return self.bn(self.conv(x))


def doubled(module, args, output):
    return output * 2


class Stateful(nn.Module):
    """Does to itself what models do: counts, caches, collects, updates buffers, draws numbers."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.block = Block()
        self.hooked = nn.Linear(4, 2)
        self.hooked.register_forward_hook(doubled)
        self.register_buffer("mean", torch.zeros(()))
        self.calls = 0
        self.cache = None
        self.history = []
        self.lock = threading.Lock()
        self.conv.weight.requires_grad_(False)

    def forward(self, x):
        self.calls += 1
        self.mean += x.mean()
        self.cache = self.block(self.bn(self.conv(x)).relu())
        random.random(), numpy.random.rand(), torch.rand(1)
        self.history.append(x)
        return self.hooked(self.cache.mean((2, 3)))


def snapshot(model):
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "identity": {name: id(tensor) for name, tensor in model.named_parameters()},
        "modules": {name: id(module) for name, module in model.named_modules()},
        "training": [module.training for module in model.modules()],
        "hooks": [list(module._forward_hooks) for module in model.modules()],
        "grads": [(p.requires_grad, p.grad) for p in model.parameters()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "own": (model.calls, model.cache, list(model.history)),
    }


def surroundings():
    state = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (state[1].tolist(), state[2]),
        "torch": torch.get_rng_state().tolist(),
        "hooks": (len(modules._global_forward_hooks), len(modules._global_forward_pre_hooks)),
        "logging": logging.root.manager.disable,
        "modes": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "modes entered": torch._C._len_torch_dispatch_stack(),
    }


def assert_equal(before, after):
    assert before.keys() == after.keys()
    for name, tensor in before.pop("state").items():
        assert torch.equal(tensor, after["state"][name])
    after.pop("state")
    assert before == after


@pytest.fixture
def model(trained):
    return trained(Stateful())


def test_a_model_is_left_as_it_was(model):
    x, before, around = X.clone(), snapshot(model), surroundings()
    report = fuse(model, (x,))
    assert report.folded == 2
    assert report.own == 1
    assert_equal(before, snapshot(model))
    assert surroundings() == around
    assert torch.equal(x, X)


def test_the_fused_model_shares_no_memory_with_the_model(model):
    fused = fuse(model, (X,), latency=False).model
    theirs = {tensor.data_ptr() for tensor in fused.state_dict().values()}
    assert theirs.isdisjoint(tensor.data_ptr() for tensor in model.state_dict().values())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("part", ["gather", "left", "_costs"])
def test_a_model_is_left_as_it_was_when_something_breaks(model, monkeypatch, part, inplace):
    def broken(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"ptools.fusion.engine.{part}", broken)
    before, around = snapshot(model), surroundings()
    with pytest.raises(KeyboardInterrupt):
        fuse(model, (X,), inplace=inplace, latency=False)
    assert_equal(before, snapshot(model))
    assert surroundings() == around


def test_a_model_is_left_as_it_was_when_its_forward_fails(model):
    before, around = snapshot(model), surroundings()
    with pytest.raises(Exception, match="forward failed"):
        fuse(model, (X[:, :2],), latency=False)
    assert_equal(before, snapshot(model))
    assert surroundings() == around


def test_in_place_changes_what_it_folds_and_nothing_else(model):
    original, before, around = copy_of(model), snapshot(model), surroundings()
    report = fuse(model, (X,), inplace=True, latency=False)
    after = snapshot(model)
    assert report.model is model
    assert surroundings() == around
    assert isinstance(model.bn, nn.Identity)
    assert isinstance(model.block.bn, nn.Identity)
    for name in ("conv", "hooked", "block"):
        assert after["modules"][name] == before["modules"][name]
    for name in ("hooked.weight", "hooked.bias", "mean"):
        assert torch.equal(before["state"][name], after["state"][name])
    assert not model.conv.weight.requires_grad
    assert model.hooked._forward_hooks
    assert after["own"] == before["own"]
    with torch.no_grad():
        assert torch.allclose(model(X), original(X), atol=1e-5)


def test_in_place_and_a_copy_get_the_same_weights(model):
    fused = fuse(model, (X,), latency=False).model
    fuse(model, (X,), inplace=True, latency=False)
    assert fused.state_dict().keys() == model.state_dict().keys()
    for name, tensor in fused.state_dict().items():
        if name != "mean":  # that of a copy was updated in trials
            assert torch.equal(tensor, model.state_dict()[name])


def copy_of(model):
    lock, model.lock = model.lock, None
    duplicate = copy.deepcopy(model)
    model.lock = lock
    return duplicate
