"""The objects that a training goes on from, noted as the program makes them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

_MAKERS: tuple[tuple[str, type, str], ...] = (
    ("modules", nn.Module, "__init__"),
    ("modules", nn.Module, "__setstate__"),  # copies, and those that were pickled
    ("optimizers", torch.optim.Optimizer, "__init__"),
    ("schedulers", LRScheduler, "__init__"),
    ("schedulers", ReduceLROnPlateau, "__init__"),  # calls no other
    ("scalers", torch.amp.GradScaler, "__init__"),
)


class Known:
    """Modules, optimizers, schedulers and gradient scalers that are alive, oldest first."""

    def __init__(self) -> None:
        self._made: dict[str, list[weakref.ref[Any]]] = {kind: [] for kind, *_ in _MAKERS}

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what is made while the block runs."""
        with ExitStack() as stack:
            for kind, owner, name in _MAKERS:
                maker = getattr(owner, name)
                stack.callback(setattr, owner, name, maker)
                setattr(owner, name, _noting(maker, self._made[kind]))
            yield

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name: `Adam`, `Adam (2)`."""
        return _named(self._alive("optimizers"))

    def schedulers(self) -> dict[str, LRScheduler]:
        """By name."""
        return _named(self._alive("schedulers"))

    def scalers(self) -> dict[str, torch.amp.GradScaler]:
        """By name."""
        return _named(self._alive("scalers"))

    def models(self) -> dict[str, nn.Module]:
        """By name, the modules that are in no other and hold tensors."""
        alive = self._alive("modules")
        parts = {id(part) for one in alive for part in one._modules.values()}
        return _named(
            [
                one
                for one in alive
                if id(one) not in parts
                and any(True for tensors in (one.parameters(), one.buffers()) for _ in tensors)
            ]
        )

    def _alive(self, kind: str) -> list[Any]:
        pairs = [(ref, ref()) for ref in self._made[kind]]
        once = {id(one): (ref, one) for ref, one in pairs if one is not None}
        self._made[kind][:] = [ref for ref, _ in once.values()]
        # A constructor that failed leaves an object without its attributes.
        return [one for _, one in once.values() if vars(one)]


def _noting(maker: Any, made: list[weakref.ref[Any]]) -> Any:
    @functools.wraps(maker)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(weakref.ref(self))
        return maker(self, *args, **kwargs)

    return noted


def _named(objects: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for one in objects:
        name = type(one).__name__
        counts[name] = count = counts.get(name, 0) + 1
        found[name if count == 1 else f"{name} ({count})"] = one
    return found
