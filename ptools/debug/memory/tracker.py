"""Sees each storage that an operation returns or reads, with the line that called it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload
from torch.nn import Parameter

from ptools.debug.memory.books import Books
from ptools.debug.memory.sites import BACKWARD, FORWARD, OUTSIDE, STEP, Site, Sites
from ptools.debug.memory.storages import INPUTS, OTHER, PARAMETERS, TEMPORARIES, Block
from ptools.dispatch import DispatchMode
from ptools.program.lines import Lines
from ptools.program.modules import Modules

GRAPH = "graph"  # born of an operation that autograd has noted
_LIFT = torch.ops.aten.lift_fresh.default  # hands out what torch.tensor() has just made


class Tracker(DispatchMode):
    """Enters in the books what each operation makes."""

    def __init__(self, modules: Modules, books: Books) -> None:
        super().__init__()
        self.stepping = False  # whether an optimizer is
        self._sites = Sites()
        self._lines = Lines(modules)
        self._modules = modules
        self._books = books
        self._nodes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **kwargs) if kwargs else func(*args)
        nodes = torch._C._autograd._get_sequence_nr()
        if nodes != self._nodes and torch.is_grad_enabled():
            self._nodes = nodes
            self._lines.note(nodes - 1)
        if _makes_views(func):
            return out
        self._books.operations += 1
        noted, site, unclear = False, None, []
        if func is not _LIFT:
            for tensor in _tensors((*args, *kwargs.values()) if kwargs else args):
                noted = noted or tensor.requires_grad
                unclear += self._read(tensor)
        noted = noted and torch.is_grad_enabled()
        for tensor in _tensors((out,)):
            site = self._made(tensor, site, noted)
        if unclear and (noted or self._modules.current() is not None):
            for block in unclear:
                self._books.move(block, INPUTS)
        return out

    def _read(self, tensor: torch.Tensor) -> list[Block]:
        """Book what came from outside; the blocks of which it is not clear what they are for."""
        unclear = []
        books = self._books
        for storage in self._storages(tensor):
            block = books.blocks.get(id(storage))
            if block is None:
                here = self._sites.of(self._lines.current(), OUTSIDE)
                block = books.add(storage, here, OTHER, OUTSIDE)
            elif block.size != storage.nbytes():
                books.resize(block, storage.nbytes(), self._site())
            kind = block.holding.kind
            if kind is not PARAMETERS and issubclass(type(tensor), Parameter):
                books.move(block, PARAMETERS)
            elif kind is OTHER:
                unclear.append(block)
        return unclear

    def _made(self, tensor: torch.Tensor, site: Site | None, noted: bool) -> Site | None:
        books = self._books
        for storage in self._storages(tensor):
            block = books.blocks.get(id(storage))
            if block is None:
                site = site or self._site()
                data = site.phase is FORWARD and not noted and self._modules.current() is None
                kind = OTHER if data else TEMPORARIES
                books.add(storage, site, kind, GRAPH if noted else site.phase)
            elif block.size != storage.nbytes():
                books.resize(block, storage.nbytes(), site or self._site())
        return site

    def _storages(self, tensor: torch.Tensor) -> Iterable[torch.UntypedStorage]:
        if type(tensor) is torch.Tensor or type(tensor) is Parameter:
            try:
                return (tensor.untyped_storage(),)
            except (NotImplementedError, RuntimeError):
                pass
        return self._books.storages(tensor)

    def site_of(self, node: Any) -> Site | None:
        """Where the operation stands that made a node of autograd's."""
        spot = self._lines.of(node)
        return None if spot is None else self._sites.of(spot, FORWARD)

    def _site(self) -> Site:
        if torch._C._current_graph_task_id() != -1:
            phase = BACKWARD
        else:
            # An optimizer computes without autograd; a closure that it calls does not.
            phase = STEP if self.stepping and not torch.is_grad_enabled() else FORWARD
        return self._sites.of(self._lines.current(), phase)


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [one for one in value if isinstance(one, torch.Tensor)]
    return found


@cache
def _makes_views(func: Any) -> bool:
    """Whether all that an operation returns are views of what it reads."""
    if not isinstance(func, OpOverload) or func is _LIFT:
        return False
    aliases = [one.alias_info for one in func._schema.returns]
    return all(alias is not None and not alias.is_write for alias in aliases)
