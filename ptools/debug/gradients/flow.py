"""Where the way of the gradients is cut: calls that take a graph in and give none back."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._C._autograd import _get_sequence_nr
from torch.overrides import TorchFunctionMode

from ptools.debug.calls import READS, inputs_of, kind_of, leaves_of, node_of, outputs_of
from ptools.debug.gradients.fates import Fate, Fates
from ptools.program.modules import Modules
from ptools.program.places import Place
from ptools.program.spots import Spot, spot

_LINES = 50_000  # nodes whose lines are remembered
_CUTS = 1_000
_NONE: frozenset[Cut] = frozenset()


@dataclass(frozen=True, eq=False)
class Cut:
    """A call whose arguments belong to a graph and whose result does not."""

    op: str
    place: Place | None
    off: Place | None  # where gradients were switched off, if they are
    smooth: bool  # the result is no integer and no truth value
    fates: frozenset[Fate]  # of the parameters that the graph began with
    order: int


class Flow(TorchFunctionMode):
    """Follows what was computed from a cut graph to the losses it reaches."""

    def __init__(self, modules: Modules, fates: Fates) -> None:
        super().__init__()
        self._modules = modules
        self._fates = fates
        self._kinds: dict[Any, tuple[str, str]] = {}
        self._cuts: dict[Any, Cut] = {}
        self._tainted: dict[int, tuple[weakref.ref[torch.Tensor], frozenset[Cut]]] = {}
        self._escaped: list[tuple[Any, frozenset[Cut]]] = []  # since the last backward
        self._lines: dict[int, Spot] = {}
        self._off: Spot | None = None
        self.optimizing = False
        self.cleared: Spot | None = None  # where a gradient was set to None or zero
        self.reached: set[Cut] = set()  # a loss was computed from what these gave
        self.failed = ""  # what backward raised last

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        first = _get_sequence_nr()
        kind, name = self._kinds.get(func) or self._kinds.setdefault(func, kind_of(func))
        if kind == "backward":
            return self._backward(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        # An optimizer's closure calls modules, the optimizer itself does not.
        if kind == "silent" or (self.optimizing and self._modules.current() is None):
            return out
        kwargs = kwargs or {}
        match kind:
            case "op":
                self._op(name, first, args, kwargs, out)
            case "switch":
                self._off = None if args[0] else self._here()
            case "escape":
                self._escape(name, args[0], out)
            case "maker":
                self._op(name, first, args, kwargs, out)
                self._make(args, out)
            case "cleared":
                self.cleared = self.cleared or self._here()
            case "grad":
                for fate in self._fates.of_all(inputs_of(args[1:], kwargs)):
                    fate.moved = True
        return out

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow all calls of the block.

        A transformer's fast path, whose last bits differ, is left when a function mode is on.
        """
        overrides: Any = torch.overrides
        before = overrides.has_torch_function
        overrides.has_torch_function = _has_torch_function
        try:
            with self:
                yield
        finally:
            overrides.has_torch_function = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What the block calls is our own doing."""
        with torch._C.DisableTorchFunction(), torch.no_grad():
            yield

    def cuts_before(self, root: torch.Tensor) -> frozenset[Cut]:
        """The cuts that a loss was computed behind."""
        cuts = self._taint(root)
        if root.grad_fn is None and not cuts:
            cuts = frozenset().union(*(one for _, one in self._escaped))
        self.reached |= cuts
        return cuts

    def line(self, node: Any) -> Place | None:
        """The line whose call made a node of a graph."""
        return self._fates.place(self._lines.get(node._sequence_nr()))

    def _backward(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            self.failed = str(error)
            raise
        finally:
            self._escaped.clear()
            self.cleared = None

    def _op(self, name: str, first: int, args: Any, kwargs: Any, out: Any) -> None:
        inputs = inputs_of(args, kwargs)
        outputs = list(outputs_of(name, args, out))
        in_graph = _get_sequence_nr() > first
        if name not in READS:
            self._use([one for one in inputs if all(one is not out for out in outputs)], in_graph)
        if in_graph:
            self._remember(first)
        if name.endswith("zero_"):
            self.cleared = self.cleared or self._here()
        wanting = [one for one in inputs if one.requires_grad]
        taint = self._union(inputs) if self._tainted else _NONE
        for one in outputs:
            if wanting and not one.requires_grad:
                self._mark(one, taint | {self._cut(name, wanting, one)})
            elif taint and (not one.requires_grad or node_of(one) is not None):
                self._mark(one, taint)

    def _use(self, inputs: list[torch.Tensor], in_graph: bool) -> None:
        for fate in self._fates.of_all(inputs):
            if in_graph and fate.in_graph is None:
                fate.in_graph = self._here()
                fate.used_by = self._modules.name(self._modules.current())
            elif not in_graph and fate.outside is None:
                fate.outside = self._here()

    def _remember(self, first: int) -> None:
        here = self._here()
        for number in range(first, _get_sequence_nr()):
            self._lines[number] = here
        if len(self._lines) > _LINES:
            for number in list(self._lines)[: _LINES // 2]:
                del self._lines[number]

    def _escape(self, name: str, tensor: torch.Tensor, out: Any) -> None:
        cuts = self._taint(tensor)
        if tensor.requires_grad:
            cuts |= {self._cut(name, [tensor], tensor)}
        if cuts and len(self._escaped) < _CUTS:
            self._escaped.append((out, cuts))

    def _make(self, args: tuple[Any, ...], out: Any) -> None:
        """A tensor is made of a number that came from a graph: known by its value."""
        given = args[0] if args else None
        values = [given, *(given if isinstance(given, list | tuple) else ())]
        cuts = [
            one
            for value, one in self._escaped
            if any(mine is value or (type(mine) is float and mine == value) for mine in values)
        ]
        if cuts and isinstance(out, torch.Tensor):
            self._mark(out, frozenset().union(*cuts))

    def _cut(self, name: str, wanting: list[torch.Tensor], out: torch.Tensor) -> Cut:
        here = self._here()
        leaves = tuple(id(one) for one in wanting if node_of(one) is None)
        key = here.inner, name, leaves, id(self._modules.current())
        cut = self._cuts.get(key)
        if cut is None:
            cut = Cut(
                op=name,
                place=here.place(self._modules),
                off=None if torch.is_grad_enabled() else self._fates.place(self._off),
                smooth=out.is_floating_point() or out.is_complex(),
                fates=frozenset(self._fates.of_all(leaves_of(wanting))),
                order=len(self._cuts),
            )
            if len(self._cuts) < _CUTS:
                self._cuts[key] = cut
        return cut

    def _union(self, tensors: list[torch.Tensor]) -> frozenset[Cut]:
        return _NONE.union(*map(self._taint, tensors))

    def _taint(self, tensor: torch.Tensor) -> frozenset[Cut]:
        known = self._tainted.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else _NONE

    def _mark(self, tensor: torch.Tensor, cuts: frozenset[Cut]) -> None:
        key = id(tensor)
        self._tainted[key] = (weakref.ref(tensor, lambda _: self._tainted.pop(key, None)), cuts)

    def _here(self) -> Spot:
        return spot(self._modules, 3)


def _has_torch_function(tensors: Iterable[Any]) -> bool:
    """What torch would say if our mode were not there."""
    known = torch.Tensor, nn.Parameter, type(None)
    return torch._C._len_torch_function_stack() > 1 or any(
        type(one) not in known for one in tensors
    )
