"""Run a model's forward on the cheapest kind of tensor that it accepts.

The rungs: `meta` (shapes only), `fake` (shapes that know their device, which more models accept;
its first use costs over a second), `cpu` (real, if the weights fit a quarter of free memory).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ptools.inputs import Inputs, TensorSpec
from ptools.replica import cloned, on_meta, replica, same_device
from ptools.summary.build import build_real, free_memory
from ptools.summary.report import Attempt, Rung
from ptools.summary.trace import Stop, Trace, record
from ptools.summary.tree import Node, nodes


@dataclass(frozen=True)
class Subject:
    """The model, how to make it for real if it was built without memory, and its mode."""

    model: nn.Module
    factory: Callable[[], Any] | None = None
    training: bool = False
    dtype: torch.dtype | None = None

    def stand_in(self, rung: Rung) -> nn.Module:
        """A copy to run on the rung, in the subject's mode and dtype."""
        if rung == "cpu":
            built = self.factory is not None and any(t.is_meta for t in _weights(self.model))
            source = build_real(self.factory) if built and self.factory else self.model
            copied = source if built else replica(source, cloned)
        else:
            copied = replica(self.model, on_meta if rung == "meta" else same_device)
        copied.train(self.training)
        return copied if self.dtype is None else copied.to(self.dtype)


@dataclass(frozen=True)
class Run:
    """One forward: on which rung, with which layers, and what was seen."""

    rung: Rung
    nodes: list[Node]
    trace: Trace
    attempts: tuple[Attempt, ...] = ()

    @property
    def error(self) -> Exception | None:
        """What ended the run early."""
        return self.trace.stop.error if self.trace.stop else None

    @property
    def other_inputs_may_do(self) -> bool:
        """Whether its stop would be the same with real tensors: they were tried, or the error is
        not about tensors without data."""
        tried = any(attempt.rung == "cpu" and attempt.ran for attempt in self.attempts)
        return self.error is not None and (tried or not is_abstract(self.error))


def climb(subject: Subject, inputs: Inputs, *, backward: bool, patient: bool = True) -> Run:
    """The first rung whose run is complete; else the one that came furthest, with its stop.

    With `patient` False an error that looks like the input's fault ends the climb at once.
    """
    attempts: list[Attempt] = []
    furthest: Run | None = None
    for rung in rungs_for(subject.model):
        if rung == "cpu" and (reason := _too_large(subject)):
            attempts.append(Attempt("cpu", reason, ran=False))
            break
        run = run_on(rung, subject, inputs, backward=backward)
        stop = run.trace.stop
        if stop is None:
            return replace(run, attempts=tuple(attempts))
        attempts.append(attempt_of(rung, stop))
        if furthest is None or len(run.trace.visits) >= len(furthest.trace.visits):
            furthest = run
        if not patient and not is_abstract(stop.error):
            break
    assert furthest is not None
    return replace(furthest, attempts=tuple(attempts))


def rungs_for(model: nn.Module) -> tuple[Rung, ...]:
    """TorchScript's interpreter does not take tensors on meta."""
    return ("fake", "cpu") if has_script(model.modules()) else ("meta", "fake", "cpu")


def has_script(modules: Iterable[nn.Module]) -> bool:
    """Whether TorchScript is among them: it runs elsewhere and refuses hooks."""
    return any(isinstance(module, torch.jit.ScriptModule) for module in modules)


class Stage(NamedTuple):
    """A stand-in and the arguments for its forward, on one rung."""

    model: nn.Module
    nodes: list[Node]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextlib.contextmanager
def staged(rung: Rung, subject: Subject, inputs: Inputs) -> Iterator[Stage]:
    """What a run on the rung needs; on `fake` all tensors made within it are fake."""
    with _fake_tensors() if rung == "fake" else contextlib.nullcontext():
        model = subject.stand_in(rung)
        args, kwargs = inputs.make(_maker(rung, model))
        yield Stage(model, nodes(model), args, kwargs)


def run_on(rung: Rung, subject: Subject, inputs: Inputs, *, backward: bool) -> Run:
    """One run on one rung; what fails, be it the copy, becomes the trace's stop."""
    try:
        with staged(rung, subject, inputs) as (model, found, args, kwargs):
            trace = record(model, args, kwargs, found, on_meta=rung == "meta", backward=backward)
            return Run(rung, found, trace)
    except Exception as error:
        return Run(rung, [], Trace(stop=Stop(error, None, None)))


def _fake_tensors() -> contextlib.AbstractContextManager[Any]:
    """In which all new tensors are fake. The import is torch's compiler: over a second."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def _maker(rung: Rung, model: nn.Module) -> Callable[[TensorSpec], torch.Tensor]:
    """Makes the input tensors: real ones from the user's data, else from a generator of our own."""
    first = next(_weights(model), None)
    device = torch.device("meta") if rung == "meta" else getattr(first, "device", "cpu")
    generator = torch.Generator().manual_seed(0) if rung == "cpu" else None

    def make(spec: TensorSpec) -> torch.Tensor:
        if rung == "cpu" and spec.value is not None:
            return spec.value.detach().clone().to(device)
        if rung == "cpu" and spec.dtype is not None and spec.dtype.is_floating_point:
            noise = torch.rand(spec.shape, generator=generator)
            return noise.to(device=device, dtype=spec.dtype)
        return torch.zeros(spec.shape, dtype=spec.dtype, device=device)

    return make


def is_abstract(error: Exception) -> bool:
    """Whether the error is about tensors without data, not about the model or its input."""
    kind = type(error)
    return (
        isinstance(error, NotImplementedError)
        or kind.__module__.startswith(("torch._subclasses", "torch.fx.experimental"))
        or "meta" in str(error).lower()
    )


def attempt_of(rung: Rung, stop: Stop) -> Attempt:
    """The stop in words."""
    lines = [line.strip() for line in str(stop.error).splitlines() if line.strip()]
    reason = f"{type(stop.error).__name__}: {lines[0]}" if lines else type(stop.error).__name__
    file, line = stop.line or (None, None)
    return Attempt(rung, reason, stop.path, file, line)


def _too_large(subject: Subject) -> str | None:
    size = sum(t.numel() * t.element_size() for t in _weights(subject.model))
    if size > free_memory() // 4:
        return "the weights take more than a quarter of the free memory"
    if subject.factory is None and any(t.is_meta for t in _weights(subject.model)):
        return "the model's weights are on meta, there is no data to run"
    return None


def _weights(model: nn.Module) -> Iterator[torch.Tensor]:
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if not is_lazy(tensor):
            yield tensor
