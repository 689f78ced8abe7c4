"""Looks at what each operation returns, before the next one runs."""

from __future__ import annotations

from typing import Any

import torch
from torch._C._autograd import _get_sequence_nr

from ptools.debug.finite import CHECKED, PLAIN, is_finite
from ptools.debug.mode import tensors_in
from ptools.debug.nan.operations import Care, Operation, inputs_of, operation_of
from ptools.debug.nan.origins import Origins
from ptools.dispatch import DispatchMode
from ptools.program.clock import Clock
from ptools.program.lines import Lines
from ptools.program.modules import Modules


class Tracer(DispatchMode):
    """Finds what is not finite, and notes the line of each node of a backward."""

    def __init__(self, clock: Clock, modules: Modules) -> None:
        super().__init__()
        self.on = False
        self.lines = Lines(modules)
        self.origins = Origins(clock, modules, self.lines)
        self._last = -1

    def __enter__(self) -> Any:
        self.on = True
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        self.on = False
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if types and not PLAIN.issuperset(types):
            return NotImplemented  # what such a tensor is made of comes here too
        out = func(*args, **kwargs) if kwargs else func(*args)
        made = _get_sequence_nr() - 1  # this operation's node, if it has one
        if made != self._last:
            self._last = made
            self.lines.note(made)
        operation = operation_of(func)
        care, origins = operation.care, self.origins
        if operation.written and origins.memory:
            for one in inputs_of(operation, args, kwargs):
                if one.written:
                    origins.memory.clear(one.tensor)
        if care is Care.ANYTHING or (care is Care.MOVED and (origins.nans or origins.infs)):
            self._check(operation, args, kwargs, out)
        elif care is Care.MEMORY:
            for tensor in tensors_in(out):
                origins.unwritten(operation, tensor)
        return out

    def _check(self, operation: Operation, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        origins = self.origins
        if type(out) is torch.Tensor:  # nearly always
            if out.dtype not in CHECKED:  # to ask for NaN is not to take it out
                return
            bad = [] if is_finite(out) else [out]
        elif out is None:
            given = inputs_of(operation, args, kwargs)
            bad = [one.tensor for one in given if one.written and not is_finite(one.tensor)]
        else:
            bad = [one for one in tensors_in(out) if not is_finite(one)]
        if bad:
            origins.not_finite(operation, list(inputs_of(operation, args, kwargs)), bad)
        elif origins.nans or origins.infs:
            origins.finite(list(inputs_of(operation, args, kwargs)))
