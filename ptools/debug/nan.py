"""Mode `nan`: the operation that made the first NaN, and where the infinity behind it was born."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ptools.debug.findings import Finding
from ptools.debug.mode import Mode, tensors_in
from ptools.debug.spots import Spot, spot
from ptools.debug.stats import stats_of
from ptools.dispatch import DispatchMode, name_of


class Nan(Mode):
    """Checks what each operation returns, from the tick `start` on."""

    def __init__(self, *rest: Any, start: int = 0) -> None:
        super().__init__(*rest)
        self.start = start
        self._tracer = _Tracer(self)

    @contextmanager
    def running(self) -> Iterator[None]:
        if self.start == 0:
            self._tracer.__enter__()
        try:
            yield
        finally:
            if self._tracer.on:
                self._tracer.__exit__(None, None, None)

    def after_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        if not self._tracer.on and self.clock.ticks >= self.start:
            self._tracer.__enter__()


class _Tracer(DispatchMode):
    def __init__(self, mode: Nan) -> None:
        super().__init__()
        self.mode = mode
        self.on = False
        self.forward: dict[int, Spot] = {}

    def __enter__(self) -> Any:
        self.on = True
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        self.on = False
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            if tensor.is_floating_point() and math.isnan(tensor.sum().item()):
                self._found(func, args, tensor)
        return out

    def _found(self, func: Any, args: tuple[Any, ...], out: torch.Tensor) -> None:
        place = spot(self.mode.modules, 2).place(self.mode.modules)
        inputs = [one for arg in args for one in tensors_in(arg) if one.is_floating_point()]
        self.mode.found(
            Finding(
                kind="nan",
                summary=f"{name_of(func)} made the first NaN",
                places=(("made", place),) if place else (),
                op=name_of(func),
                tensors=(
                    stats_of("output", out),
                    *(stats_of(f"input {i}", one) for i, one in enumerate(inputs)),
                ),
            )
        )
