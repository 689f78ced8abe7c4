"""What a conversion changed: a model's outputs, size and speed, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ptools.errors import PtoolsError, UsageError
from ptools.files import human_bytes
from ptools.rng import preserve_rng
from ptools.train.devices import to_device
from ptools.usercode import describe

_SECONDS = 1.0
_RUNS = 7, 100  # at least, at most
_NOISE = 1.05  # a ratio below it is no gain
_WANTED = "give a batch as forward takes it, (inputs, targets), or a list or loader of these"
_FOLLOW = "let its code follow the dtype and the layout of its input"


@dataclass(frozen=True)
class Conversion:
    """A model before and after.

    Attributes:
        kind: float16, channels_last or int8.
        error: the largest difference of an output, as a share of the largest output of its batch.
        agreement: the share of samples whose largest of several scores is the same one; None where
            no output has two dimensions.
        samples: that were compared so.
        bytes_before: of the state_dict, as torch.save writes it.
        seconds_before: for the first batch; medians of runs in turn with those after.
    """

    kind: str
    tolerance: float
    error: float
    agreement: float | None
    samples: int
    bytes_before: int
    bytes_after: int
    seconds_before: float
    seconds_after: float

    @property
    def within(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance

    @property
    def speedup(self) -> float:
        """How many times as fast it is on this machine."""
        return self.seconds_before / self.seconds_after

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "within": self.within, "speedup": self.speedup}

    def __str__(self) -> str:
        bound = "within" if self.within else "above"
        parts = [f"error {self.error:.2g} of the largest output ({bound} {self.tolerance:g})"]
        if not self.error:
            parts = ["outputs equal bit for bit"]
        if self.agreement is not None:
            parts.append(f"same class for {self.agreement:.1%} of {self.samples} samples")
        parts.append(f"{human_bytes(self.bytes_before)} -> {human_bytes(self.bytes_after)}")
        times = f"{self.seconds_before * 1e3:.3g} -> {self.seconds_after * 1e3:.3g} ms"
        gain = "" if self.speedup >= _NOISE else ", which does not pay on this machine"
        parts.append(f"{times}, {self.speedup:.2f} x the speed{gain}")
        return f"{self.kind}: {'; '.join(parts)}"


def compare(
    kind: str,
    before: nn.Module,
    after: nn.Module,
    data: Any,
    feed: Callable[[Any], Any],
    tolerance: float,
) -> Conversion:
    """Run both on the data, each as it wants its inputs.

    Args:
        feed: makes inputs for the model after of those before.

    Raises:
        PtoolsError: one of them does not run on the data.
        UsageError: there is no data.
    """
    device = next((one.device for one in before.parameters()), torch.device("cpu"))
    error, same, samples, timed = 0.0, 0, 0, None
    for batch in _inputs(data):
        inputs = to_device(batch, device)
        expected = _run(before, inputs, "the model does not run on the data", _WANTED)
        got = _run(after, feed(inputs), f"the model does not run as {kind}", _FOLLOW)
        error = max(error, *_errors(expected, got))
        for one, other in zip(expected, got, strict=False):
            if one.dim() == 2 and one.shape[1] > 1 and one.shape == other.shape:
                same += int((one.argmax(1) == other.argmax(1)).sum())
                samples += len(one)
        timed = inputs if timed is None else timed
    if timed is None:
        raise UsageError("there is no data to compare with", hint="one batch or more")
    seconds = _seconds((before, timed), (after, feed(timed)), device)
    agreement = same / samples if samples else None
    sizes = _bytes(before), _bytes(after)
    return Conversion(kind, tolerance, error, agreement, samples, *sizes, *seconds)


def _inputs(data: Any) -> Iterator[Any]:
    """Of each batch, without targets."""
    batches = [data] if isinstance(data, torch.Tensor | Mapping | tuple) else data
    if not isinstance(batches, Iterable) or isinstance(batches, str):
        raise UsageError(
            f"data is {data!r}, from which no batch comes",
            hint="a tensor, a list of them, a loader",
        )
    for batch in batches:
        inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
        yield dict(inputs) if isinstance(inputs, Mapping) else inputs


def _run(model: nn.Module, inputs: Any, problem: str, hint: str) -> list[torch.Tensor]:
    """The tensors it returns, from one random state."""
    with preserve_rng():
        torch.manual_seed(0)
        try:
            output = _call(model, tree_map_only(torch.Tensor, torch.clone, inputs))
        except Exception as error:
            raise PtoolsError(f"{problem}: {describe(error)}", hint=hint) from error
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise PtoolsError(
            f"the model returns no tensor, but a {type(output).__name__}",
            hint="wrap it in a module that returns the tensors to compare",
        )
    return tensors


@torch.no_grad()
def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _errors(expected: list[torch.Tensor], got: list[torch.Tensor]) -> Iterator[float]:
    """For each tensor; infinite where shapes differ, or what was finite is not."""
    if [one.shape for one in expected] != [one.shape for one in got]:
        yield float("inf")
        return
    for one, other in zip(expected, got, strict=True):
        a, b = one.double(), other.double()
        finite = a.isfinite()
        if not torch.equal(finite, b.isfinite()):
            yield float("inf")
            continue
        a, b = a[finite], b[finite]
        apart = (a - b).abs().max().item() if a.numel() else 0.0
        largest = a.abs().max().item() if a.numel() else 0.0
        yield apart / largest if largest else (float("inf") if apart else 0.0)


def _seconds(
    first: tuple[nn.Module, Any], second: tuple[nn.Module, Any], device: torch.device
) -> tuple[float, float]:
    """Medians, of runs in turn so that a disturbance meets both."""
    times: tuple[list[float], list[float]] = ([], [])
    deadline = time.perf_counter() + _SECONDS
    while len(times[0]) < _RUNS[0] or (time.perf_counter() < deadline and len(times[0]) < _RUNS[1]):
        for seconds, (model, inputs) in zip(times, (first, second), strict=True):
            fresh = tree_map_only(torch.Tensor, torch.clone, inputs)  # it may write to them
            _synchronise(device)
            start = time.perf_counter()
            _call(model, fresh)
            _synchronise(device)
            seconds.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def _bytes(model: nn.Module) -> int:
    """Packed weights are no parameters: only a file counts them all, each once."""
    file: Any = _Counted()
    torch.save(model.state_dict(), file)
    return int(file.size)


class _Counted:
    """A file that keeps nothing of what is written to it but the size."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """There is nothing to flush."""
