"""Run a stand-in once and write down every operation: where, from which line, how many MACs."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._ops import HigherOrderOperator

from ptools.dispatch import DispatchMode, name_of
from ptools.rng import preserve_rng
from ptools.source import Line, is_users
from ptools.summary.attribution import Attribution, ModuleStack, Visit, tensors_in
from ptools.summary.flops import has_formula
from ptools.summary.infer import infer
from ptools.summary.tree import Node

_META = torch.device("meta")


@dataclass(slots=True)
class Call:
    """One operation: `flops` is None where there is no formula; `bytes` are read and written."""

    op: str
    path: str
    flops: int | None
    bytes: int
    backward: bool
    line: Line | None


@dataclass
class Stop:
    """Where and why a forward ended early: `file:line` is the user's, `path` the module's."""

    error: Exception
    path: str | None
    line: Line | None


@dataclass
class Trace:
    """What one run showed."""

    calls: list[Call] = field(default_factory=list)
    visits: dict[str, Visit] = field(default_factory=dict)
    stop: Stop | None = None


class Recorder(DispatchMode):
    """Appends a `Call` for every operation that runs within it.

    With `on_meta` new tensors are made there: what `with torch.device("meta")` does, at a third
    of its cost, and also where the model's code names the CPU.
    """

    def __init__(self, modules: ModuleStack, *, on_meta: bool) -> None:
        super().__init__()
        self.attribution = Attribution(modules)
        self.on_meta = on_meta
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.on_meta:
            args, kwargs = _redirected(func, args, kwargs)
        if torch.is_inference_mode_enabled() and _is_composite(func) and not has_formula(func):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        out, cost = infer(func, args, kwargs)
        path, line, backward = self.attribution.current(sys._getframe(1))
        self.calls.append(Call(name_of(func), path, cost.flops, cost.bytes, backward, line))
        return out


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    found: Sequence[Node],
    *,
    on_meta: bool,
    backward: bool,
) -> Trace:
    """Run model(*args, **kwargs), and its backward if asked; an exception becomes `Trace.stop`.

    `model` must be a stand-in: it gets hooks, and keeps them.
    """
    modules = ModuleStack(found)
    recorder = Recorder(modules, on_meta=on_meta)
    stop = None
    try:
        with quiet(), plain_kernels(), torch.set_grad_enabled(backward), recorder:
            output = model(*args, **kwargs)
            if backward:
                run_backward(output)
    except Exception as error:
        stop = Stop(error, *_where(error, modules.paths))
    return Trace(recorder.calls, modules.visits, stop)


def _redirected(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The call with CPU tensors that the model makes itself put on meta."""
    if func is torch.ops.aten.lift_fresh.default and not args[0].is_meta:  # torch.tensor(...)
        return (args[0].to("meta"),), kwargs
    device = kwargs.get("device")
    if device is not None and device.type == "cpu":
        return args, {**kwargs, "device": _META}
    return args, kwargs


def run_backward(output: Any) -> None:
    """Backward from every output that has a gradient, without adding a loss of our own."""
    tensors = [t for t in tensors_in(output) if t.requires_grad]
    if not tensors:
        raise RuntimeError("no output of the forward requires a gradient")
    torch.autograd.backward(tensors, [torch.empty_like(t) for t in tensors])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing of torch's about our tensors on stderr, no compilation, random state kept."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserve_rng())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if "torch._dynamo" in sys.modules:  # importing it costs more than a summary
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        log.disabled = True
        try:
            yield
        finally:
            log.disabled = before


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Switch off the fused kernels that hide their matrix products from a dispatch mode."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.backends.mkldnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _where(error: Exception, paths: Mapping[int, Sequence[str]]) -> tuple[str | None, Line | None]:
    """The innermost module and the innermost user line in the error's traceback."""
    path, line = None, None
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code is nn.Module._call_impl.__code__:
            path = paths.get(id(frame.f_locals["self"]), [None])[0]
        if is_users(frame.f_code.co_filename):
            line = frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    return path, line


# Decomposing these asks a tensor for its size within its own size query.
_NOT_COMPOSITE = frozenset(
    """
    is_contiguous is_strides_like_format is_non_overlapping_and_dense size sym_size stride
    sym_stride storage_offset sym_storage_offset numel sym_numel dim sym_is_contiguous
    """.split()
)


def _is_composite(func: Any) -> bool:
    if isinstance(func, HigherOrderOperator):
        return False
    name = func._overloadpacket.__name__
    return func.namespace == "aten" and name not in _NOT_COMPOSITE and func._can_decompose()
