"""Whatever is handed to `summarize` comes back as it was, after success and after failure."""

import random
import threading

import numpy
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from ptools.summary import ForwardError, summarize


class Stateful(nn.Module):
    """Does to itself what models do: counts, caches, collects, updates buffers, draws numbers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()
        self.linear = nn.Linear(4, 2)
        self.normed = spectral_norm(nn.Linear(2, 2))
        self.weighted = parametrizations.weight_norm(nn.Linear(2, 2))
        self.calls = 0
        self.cache = None
        self.history = []
        self.table = {"positions": torch.arange(4)}
        self.lock = threading.Lock()

    def forward(self, x):
        self.calls += 1
        x = self.drop(self.bn(self.conv(x))).mean((2, 3))
        self.cache = x
        self.history.append(x)
        self.table["positions"] = self.table["positions"] + 1
        return self.weighted(self.normed(self.linear(x + torch.rand_like(x))))


def snapshot(model):
    hooks = [name for name in vars(model) if name.endswith("hooks")]
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "identity": {k: id(v) for k, v in model.named_parameters()},
        "devices": {k: v.device for k, v in model.state_dict().items()},
        "training": [m.training for m in model.modules()],
        "hooks": [{h: list(getattr(m, h)) for h in hooks} for m in model.modules()],
        "grads": [p.grad is None for p in model.parameters()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "forwards": [type(m).forward for m in model.modules()],
        "calls": model.calls,
        "cache": model.cache,
        "history": list(model.history),
        "positions": model.table["positions"].tolist(),
    }


def surroundings():
    return {
        "random": random.getstate(),
        "numpy": numpy.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
    }


def assert_same(before, after):
    assert before.keys() == after.keys()
    for key in before:
        if key == "state":
            for name, tensor in before[key].items():
                assert torch.equal(tensor, after[key][name]), name
        else:
            assert before[key] == after[key], key


@pytest.fixture
def model():
    model = Stateful()
    model.bn.eval()  # a frozen BN in a model that trains: torchinfo would wake it
    model.linear.register_forward_hook(lambda module, args, output: None)
    return model


OPTIONS = [
    {},
    {"backward": True, "batch": 2},
    {"train": True, "optimizer": "sgd(momentum=0.9)", "batch": 2},
    {"dtype": torch.bfloat16},
    {"advise": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_after_a_summary(model, options):
    x = torch.rand(1, 3, 8, 8)
    copy_of_x, version = x.clone(), x._version
    before, outside = snapshot(model), surroundings()
    summarize(model, x, **options)
    assert_same(before, snapshot(model))
    assert outside == surroundings()
    assert torch.equal(x, copy_of_x)
    assert x._version == version
    assert x.grad is None


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_after_a_failure(model, options):
    before, outside = snapshot(model), surroundings()
    with pytest.raises(ForwardError):
        summarize(model, torch.ones(1, 5, 8, 8), **options)
    assert_same(before, snapshot(model))
    assert outside == surroundings()


def test_after_guessing(model):
    before, outside = snapshot(model), surroundings()
    assert summarize(model).input_source == "guessed"
    assert_same(before, snapshot(model))
    assert outside == surroundings()


def test_after_a_run_on_real_tensors(model):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            assert x.sum() > -1
            return self.model(x)

    before, outside = snapshot(model), surroundings()
    assert summarize(Branch(), torch.ones(1, 3, 8, 8)).rung == "cpu"
    assert_same(before, snapshot(model))
    assert outside == surroundings()


def test_building_leaves_the_random_state():
    outside = surroundings()
    summarize(Stateful)
    assert outside == surroundings()


def test_the_model_still_trains(model):
    summarize(model, torch.rand(1, 3, 8, 8), train=True, batch=2)
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
