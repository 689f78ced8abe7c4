"""What a model costs: operations, multiply-accumulates, parameters, and seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ptools.fusion.quiet import quiet_logs
from ptools.fusion.regions import CONVOLUTIONS, MATRICES, NORMS
from ptools.fusion.report import Latency, Operations
from ptools.fusion.trace import Trace
from ptools.fusion.trials import Trial

_SECONDS = 2.0
_RUNS = 7, 200  # at least, at most


def operations(trace: Trace) -> Operations:
    """Those of a trace that compute with the input."""
    names = [op.name for op in trace.ops if not op.output.constant]
    return Operations(
        sum(name in CONVOLUTIONS for name in names),
        sum(name in MATRICES for name in names),
        sum(name in NORMS for name in names),
        sum(name in ("aten::add", "aten::add_") for name in names),
        len(names),
    )


def macs(model: nn.Module, trial: Trial) -> int:
    """Multiply-accumulates of convolutions and matrix products, by torch's own counter."""
    counter = FlopCounterMode(display=False)
    with quiet_logs(), counter:
        trial.run(model)
    return counter.get_total_flops() // 2


def parameters(model: nn.Module) -> int:
    """Elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def latency(before: Callable[[], object], after: Callable[[], object]) -> Latency:
    """Seconds of two functions, run in turn so that a disturbance meets both."""
    for _ in range(2):
        before()
        after()
    times: tuple[list[float], list[float]] = ([], [])
    deadline = time.perf_counter() + _SECONDS
    while len(times[0]) < _RUNS[0] or (time.perf_counter() < deadline and len(times[0]) < _RUNS[1]):
        for seconds, run in zip(times, (before, after), strict=True):
            start = time.perf_counter()
            run()
            _synchronise()
            seconds.append(time.perf_counter() - start)
    first, second = map(_interval, times)
    ratio = (first[0] / second[0], first[1] / second[2], first[2] / second[1])
    return Latency(first, second, ratio, len(times[0]), torch.get_num_threads())


def _interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and the two order statistics that hold it with 95 % (normal approximation)."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = max(0, int(n / 2 - reach)), min(n - 1, int(n / 2 + reach))
    return statistics.median(ordered), ordered[low], ordered[high]


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
