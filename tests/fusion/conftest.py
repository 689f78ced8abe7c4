"""Fixtures for the tests of fusion."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ptools.fusion import fuse


def _trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, and its batch norms as after training: fresh ones hardly change anything."""
    generator = torch.Generator().manual_seed(seed)
    norms: list[Any] = [
        module
        for module in model.modules()
        if isinstance(getattr(module, "running_var", None), torch.Tensor)
    ]
    for norm in norms:
        with torch.no_grad():
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            if norm.weight is not None:
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.bias.normal_(generator=generator)
            if getattr(norm, "num_batches_tracked", None) is not None:
                norm.num_batches_tracked.fill_(100)
    return model.eval()


@pytest.fixture
def trained() -> Callable[..., nn.Module]:
    """A function that gives a model (and a seed) trained-looking statistics, in eval mode."""
    return _trained


class _Norms(TorchDispatchMode):
    """Counts batch norms as they run, however they are written."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "batch_norm" in str(func)
        return func(*args, **(kwargs or {}))


def norms_run(model: nn.Module, *inputs: Any) -> int:
    with torch.no_grad(), _Norms() as counter:
        model(*inputs)
    return counter.count


def tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = output.values()
    elif not isinstance(output, list | tuple):
        output = vars(output).values()
    return [tensor for part in output for tensor in tensors(part)]


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Two models give the same for inputs of other numbers and sizes than those that are passed."""

    def check(model: nn.Module, fused: nn.Module, *inputs: torch.Tensor) -> None:
        for seed in range(3):
            torch.manual_seed(seed)
            others = [
                torch.randn_like(each.repeat(seed + 1, *[1] * (each.dim() - 1))) * 2 + seed
                for each in inputs
            ]
            with torch.no_grad():
                pairs = zip(tensors(model(*others)), tensors(fused(*others)), strict=True)
            for expected, got in pairs:
                error = (expected.double() - got.double()).abs().max()
                assert error <= 2e-5 * expected.double().std(unbiased=False) + 1e-7

    return check


@pytest.fixture
def observation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch.export, which takes most of the time."""
    monkeypatch.setattr("ptools.fusion.evidence.exported_trace", lambda *args: (None, "not run"))


@pytest.fixture
def assert_norms(trained, assert_same, observation_alone) -> Callable[..., Any]:
    """Fusing keeps the output, and leaves so many of the batch norms that run before."""

    def check(model: nn.Module, *inputs: torch.Tensor, before: int, after: int) -> Any:
        trained(model)
        report = fuse(model, inputs, latency=False)
        assert_same(model, report.model, *inputs)
        assert (norms_run(model, *inputs), norms_run(report.model, *inputs)) == (before, after)
        assert report.equal
        assert all(each.reason for each in report.left)
        return report

    return check
