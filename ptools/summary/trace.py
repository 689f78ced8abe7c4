"""Run a stand-in once and write down every operation: where, from which line, how many MACs."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch._ops import HigherOrderOperator
from torch.utils._pytree import tree_leaves

from ptools.summary.build import preserve_rng
from ptools.summary.flops import has_formula
from ptools.summary.infer import infer
from ptools.summary.mode import DispatchMode
from ptools.summary.source import Line, is_users, user_line
from ptools.summary.tree import Node, paths_of

Shape = tuple[int, ...]


@dataclass(slots=True)
class Call:
    """One operation: `flops` is None where there is no formula; `bytes` are read and written."""

    op: str
    path: str
    flops: int | None
    bytes: int
    backward: bool
    line: Line | None


@dataclass(slots=True)
class Visit:
    """The calls of one module by one path; shapes are those of the first call."""

    calls: int = 0
    inputs: tuple[Shape, ...] = ()
    outputs: tuple[Shape, ...] = ()


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


class ModuleStack:
    """Follows which module is running, under the path by which it was reached."""

    def __init__(self, found: Sequence[Node]) -> None:
        self.paths = paths_of(found)
        self.stack: list[str] = []
        self.visits: dict[str, Visit] = {}
        for module in {id(node.module): node.module for node in found}.values():
            if not isinstance(module, torch.jit.ScriptModule):  # refuses hooks
                module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True)
                module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        path = self._path(module)
        self.stack.append(path)
        if torch._C._current_autograd_node() is not None:
            return  # activation checkpointing runs it again; that is no new call of the model
        visit = self.visits.get(path)
        if visit is None:
            visit = self.visits[path] = Visit()
        visit.calls += 1
        if visit.calls == 1:
            only = args[0] if len(args) == 1 and not kwargs else (args, kwargs)
            visit.inputs = _shapes(only)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        visit = self.visits.get(self.stack.pop())
        if visit is not None and not visit.outputs:
            visit.outputs = _shapes(output)

    def _path(self, module: nn.Module) -> str:
        paths = self.paths[id(module)]
        if len(paths) > 1 and self.stack:
            inside = f"{self.stack[-1]}." if self.stack[-1] else ""
            return next((path for path in paths if path.startswith(inside)), paths[0])
        return paths[0]


class Attribution:
    """Whose work the current operation is: a backward operation belongs where its forward ran.

    An autograd node is made just before its operation is dispatched, so the newest sequence
    number names it; the engine shows the same number while the node runs backward.
    """

    def __init__(self, modules: ModuleStack) -> None:
        self.modules = modules
        self._owner: dict[int, tuple[str, Line | None]] = {}

    def current(self, frame: FrameType) -> tuple[str, Line | None, bool]:
        """Module path, the user's source line, and whether this is in backward."""
        node = torch._C._current_autograd_node()
        stack = self.modules.stack
        if node is None or stack:
            path, line = stack[-1] if stack else "", user_line(frame)
            if torch.is_grad_enabled():
                number = torch._C._autograd._get_sequence_nr() - 1
                self._owner.setdefault(number, (path, line))
            return path, line, node is not None
        return *self._owner.get(node._sequence_nr(), ("", None)), True


class Recorder(DispatchMode):
    """Appends a `Call` for every operation that runs within it."""

    def __init__(self, modules: ModuleStack) -> None:
        super().__init__()
        self.attribution = Attribution(modules)
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
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
    backward: bool = False,
) -> Trace:
    """Run model(*args, **kwargs), and its backward if asked; an exception becomes `Trace.stop`.

    `model` must be a stand-in: it gets hooks, and keeps them.
    """
    modules = ModuleStack(found)
    recorder = Recorder(modules)
    stop = None
    try:
        with quiet(), plain_kernels(), torch.set_grad_enabled(backward), recorder:
            output = model(*args, **kwargs)
            if backward:
                run_backward(output)
    except Exception as error:
        stop = Stop(error, *_where(error, modules.paths))
    return Trace(recorder.calls, modules.visits, stop)


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


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Tensors in nested containers, and in the attributes of objects such as dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module | type):
            yield from (t for t in vars(leaf).values() if isinstance(t, torch.Tensor))


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


def name_of(func: Any) -> str:
    """`aten::mm` for any overload of it."""
    if isinstance(func, HigherOrderOperator):
        return str(func.name())
    return str(func._overloadpacket._qualified_op_name)


def _is_composite(func: Any) -> bool:
    if isinstance(func, HigherOrderOperator):
        return False
    name = func._overloadpacket.__name__
    return func.namespace == "aten" and name not in _NOT_COMPOSITE and func._can_decompose()


def _shapes(value: Any) -> tuple[Shape, ...]:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape),)
    return tuple(tuple(t.shape) for t in tensors_in(value))
