"""Numbers of gradients, weights and outputs, taken at the steps 0, 1, 2, 4, 8 and so on."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle

from ptools.debug.gradients.fates import Fates
from ptools.debug.gradients.histograms import Histograms
from ptools.debug.mode import tensors_in
from ptools.program.modules import Modules

_LARGEST = 2**28  # values of the weights of which a copy is made for the length of a step


class Series:
    """The numbers of one module, a list entry for each sampled step."""

    def __init__(self) -> None:
        self.norms: list[float] = []  # of the gradient
        self.largest = 0.0
        self.zeros = 0
        self.values = 0
        self.updates: list[float] = []  # |change| / |weight|
        self.outputs: list[tuple[float, float, float]] = []  # mean, standard deviation, zeros


class Samples:
    """Takes the numbers of a step, if it is one of those that are sampled."""

    def __init__(self, modules: Modules, fates: Fates, histograms: Histograms | None) -> None:
        self._modules = modules
        self._fates = fates
        self._histograms = histograms
        self._hook: RemovableHandle | None = None
        self._names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._outputs: dict[str, torch.Tensor] = {}
        self._before: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self.series: defaultdict[str, Series] = defaultdict(Series)
        self.steps: list[int] = []
        self._step = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample while the block runs."""
        self._switch(True)
        try:
            yield
        finally:
            self._switch(False)

    @property
    def not_finite(self) -> bool:
        """Whether a gradient of a sampled step was NaN or infinite."""
        return not all(isfinite(norm) for one in self.series.values() for norm in one.norms)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradients as the optimizer gets them."""
        if self._hook is None:
            return
        if self._step not in self.steps:
            self.steps.append(self._step)
        by_module: defaultdict[str, list[tuple[str, torch.Tensor]]] = defaultdict(list)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    name = self._fates.of(parameter).name or "(no module)"
                    by_module[name.rpartition(".")[0] or name].append((name, parameter))
        for module, parameters in by_module.items():
            self._take(module, parameters)

    def after_step(self, step: int) -> None:
        """Take how far the weights have moved; decide about the next step."""
        squares: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for module, parameter, before in self._before:
            now = parameter.detach()
            squares[module][0] += _norm(now - before) ** 2
            squares[module][1] += _norm(before) ** 2
        self._before.clear()
        for module, (moved, size) in squares.items():
            if size:
                self.series[module].updates.append((moved / size) ** 0.5)
        for module, numbers in self._outputs.items():
            mean, deviation, zeros = numbers.tolist()
            self.series[module].outputs.append((mean, deviation, zeros))
        self._outputs.clear()
        self._step = step
        self._switch(step & (step - 1) == 0)

    def _switch(self, on: bool) -> None:
        if on and self._hook is None:
            self._hook = register_module_forward_hook(self._called)
        elif not on and self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _called(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.is_grad_enabled() or not module._parameters:
            return
        with torch._C.DisableTorchFunction(), torch.no_grad():
            out = next((one for one in tensors_in(output) if _is_plain(one)), None)
            name = self._name(module)
            if out is None or name in self._outputs:
                return
            values = out.detach().float()
            deviation, mean = torch.std_mean(values, correction=0)
            self._outputs[name] = torch.stack([mean, deviation, (values == 0).float().mean()])
            if self._histograms is not None:
                self._histograms.add("outputs", name, values, self._step)

    def _name(self, module: nn.Module) -> str:
        name = self._names.get(module)
        if name is None:
            name = self._names[module] = self._modules.name(module)
        return name

    def _take(self, module: str, parameters: list[tuple[str, torch.Tensor]]) -> None:
        series, square = self.series[module], 0.0
        for name, parameter in parameters:
            gradient = _dense(parameter.grad)
            if gradient is None or not gradient.numel() or not parameter.numel():
                continue
            square += _norm(gradient) ** 2
            series.largest = max(series.largest, gradient.abs().max().item())
            series.values += gradient.numel()
            series.zeros += gradient.numel() - int(gradient.count_nonzero())
            if parameter.numel() <= _LARGEST:
                self._before.append((module, parameter, parameter.detach().clone()))
            if self._histograms is not None:
                self._histograms.add("gradients", name, gradient, self._step)
                self._histograms.add("weights", name, parameter.detach(), self._step)
        series.norms.append(square**0.5)


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) is torch.Tensor
        and tensor.is_floating_point()
        and tensor.device.type != "meta"
        and tensor.numel() > 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _dense(gradient: torch.Tensor | None) -> torch.Tensor | None:
    if gradient is None:
        return None
    values = gradient.detach()
    return values.coalesce().values() if values.is_sparse else values


def _norm(tensor: torch.Tensor) -> float:
    largest = tensor.abs().max()
    # The squares of small values would be zero.
    return float(torch.linalg.vector_norm(tensor / largest) * largest) if largest else 0.0
