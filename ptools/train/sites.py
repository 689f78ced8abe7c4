"""From which lines and modules of a script its operations are called, while a profiler records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch._C._profiler import _RecordFunctionFast
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from ptools.program.modules import Modules
from ptools.program.shown import line_of
from ptools.program.spots import Spot, spot


class Site(NamedTuple):
    """Where operations are called from."""

    line: str
    source: str
    module: str


class Sites(TorchFunctionMode):
    """Puts each call of torch from Python into a range that is named after its line and module.

    torch's own with_stack knows the functions on the stack, but not the lines in them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Site] = {}  # by the names of their ranges
        self._names: dict[tuple[object, ...], tuple[str, Spot, object]] = {}
        self._modules = Modules()
        self._watching = ExitStack()
        self._is_open = self._is_entered = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # A range would break a graph of torch.compile; x.shape and its like are no operations.
        name = None
        if self._is_open and not torch.compiler.is_compiling():
            name = None if getattr(func, "__name__", "") == "__get__" else self._name()
        if name is None:
            return func(*args, **(kwargs or {}))
        with _RecordFunctionFast(name):
            return func(*args, **(kwargs or {}))

    def open(self) -> None:
        """Begin, if that has not been done."""
        if self._is_open:
            return
        self._watching.enter_context(self._modules.watching())
        engine = torch.autograd.graph._engine_run_backward

        def run_backward(*args: Any, **kwargs: Any) -> Any:
            with self:  # within a call of torch no mode is on, but a backward may run user code
                return engine(*args, **kwargs)

        name = "_engine_run_backward"
        self._watching.callback(setattr, torch.autograd, name, getattr(torch.autograd, name))
        setattr(torch.autograd, name, run_backward)
        self.__enter__()  # type: ignore[no-untyped-call]
        self._is_open = self._is_entered = True

    def close(self) -> None:
        """End, as far as that can be done now: a mode which the user has entered since is above."""
        self._is_open = False
        self._watching.close()
        if self._is_entered and _get_current_function_mode() is self:
            self.__exit__(None, None, None)
            self._is_entered = False

    def _name(self) -> str | None:
        here = spot(self._modules, depth=2)
        if here.inner is None:
            return None
        module = here.module
        # By identity: to hash a code object takes longer than all the rest.
        (code, at), (outer, outer_at) = here.inner, here.outer or (None, 0)
        key = id(code), at, id(outer), outer_at, id(module)
        if key not in self._names:
            self._names[key] = self._named(here), here, module  # kept, so that ids stay theirs
        return self._names[key][0]

    def _named(self, here: Spot) -> str:
        place = here.place(self._modules)
        assert place is not None
        line = line_of(place)
        if place.called_from is not None:
            line = f"{line} from {line_of(place.called_from)}"
        name = f"{line} {place.module}".rstrip()
        self.known[name] = Site(line, place.source, place.module)
        return name
