"""Who keeps storages alive: the variable, and whether it does so by holding a graph."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ptools.debug.calls import nodes_from
from ptools.debug.memory.books import Books
from ptools.debug.memory.sites import Site
from ptools.debug.memory.storages import Block
from ptools.debug.variables import Variables
from ptools.program.modules import Modules

_MOST_NODES = 200_000
SiteOf = Callable[[Any], Site | None]  # of a node of autograd's


@dataclass(frozen=True)
class Keeper:
    """A variable that keeps tensors, or their graph alive.

    Args:
        name: `losses (list in train())`.
        container: whether it is one of many tensors that the variable holds.
        graph: whether what it holds hangs on a graph.
        site: where the tensor was made that it holds.
    """

    name: str
    container: bool
    graph: bool
    site: Site | None


class _Tensors:
    """All tensors of the process, without keeping them, so that we are none of their keepers."""

    def __init__(self) -> None:
        kinds = set(_kinds(torch.Tensor))
        self._refs = [weakref.ref(one) for one in gc.get_objects() if type(one) in kinds]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (tensor for ref in self._refs if (tensor := ref()) is not None)


def keepers(
    sites: Collection[Site], books: Books, site_of: SiteOf, begin: int, modules: Modules
) -> dict[Site, Keeper]:
    """Who keeps the storages of some sites, as far as it can be told.

    Args:
        sites: those that are asked for.
        books: all live storages.
        site_of: the site of the operation that made a node.
        begin: the sequence number with which the step began.
        modules: give names.
    """
    variables = Variables(modules)
    tensors = _Tensors()
    found = _named(_held(sites, tensors, books), variables, books)
    # What a graph keeps is known to Python too, but kept by none of its variables.
    hidden = [site for site in sites if site not in found]
    if hidden:
        ends = _ends(hidden, tensors, site_of)
        carried = _carried(ends, tensors, site_of, begin)
        found |= _named(ends, variables, books)
        found |= _named(carried, variables, books)
        # Data that a node has saved was made by an operation that has none.
        likely = Counter(found[site] for site in hidden if site in found).most_common(1)
        found |= {site: one for one, _ in likely for site in hidden if site not in found}
    return found


def _named(
    samples: dict[Site, torch.Tensor], variables: Variables, books: Books
) -> dict[Site, Keeper]:
    """Who keeps a tensor of each site; takes the samples, which keep the tensors too."""
    sites, tensors = list(samples), list(samples.values())
    samples.clear()
    known = variables.that_keep(tensors)
    found = {}
    for site, tensor in zip(sites, tensors, strict=True):
        variable = known.get(id(tensor))
        if variable is not None:
            blocks = (books.blocks.get(id(one)) for one in books.storages(tensor))
            found[site] = Keeper(
                name=variable.text,
                container=variable.container,
                graph=tensor.grad_fn is not None,
                site=next((block.holding.site for block in blocks if block), None),
            )
    return found


def _held(sites: Collection[Site], tensors: _Tensors, books: Books) -> dict[Site, torch.Tensor]:
    """For each site a tensor of its storages, of middle age: the youngest are in use."""
    wanted = set(sites)
    found: dict[int, tuple[Block, torch.Tensor]] = {}
    for tensor in tensors:
        try:
            block = books.blocks.get(id(tensor.untyped_storage()))
        except (NotImplementedError, RuntimeError, ValueError):
            continue  # sparse, or not yet initialised
        if block is None or block.holding.site not in wanted:
            continue
        if block.key not in found or tensor.grad_fn is not None:  # tells more than its twin
            found[block.key] = block, tensor
    held: dict[Site, list[torch.Tensor]] = {}
    for block, tensor in sorted(found.values(), key=lambda one: one[0].birth):
        held.setdefault(block.holding.site, []).append(tensor)
    return {site: ages[len(ages) // 2] for site, ages in held.items()}


def _ends(sites: Iterable[Site], tensors: _Tensors, site_of: SiteOf) -> dict[Site, torch.Tensor]:
    """For each site the end of the graph in which most of its nodes are; of equals one between."""
    ends = [tensor for tensor in tensors if tensor.grad_fn is not None]
    # The newest first: the end of a graph is newer than all that it keeps.
    ends.sort(key=_number, reverse=True)
    seen: set[Any] = set()
    counts = [Counter(map(site_of, _nodes(end, seen))) for end in ends]
    found = {}
    for site in sites:
        most = max((count[site] for count in counts), default=0)
        if most:
            equal = [end for end, count in zip(ends, counts, strict=True) if count[site] == most]
            found[site] = equal[len(equal) // 2]
    return found


def _carried(
    ends: dict[Site, torch.Tensor], tensors: _Tensors, site_of: SiteOf, begin: int
) -> dict[Site, torch.Tensor]:
    """For each site whose graph goes on from step to step, the tensor that is carried over.

    The last step hangs on a node of the step before: what is carried is the newest tensor that
    was made likewise.
    """
    newest: dict[Any, torch.Tensor] = {}
    graphs = [tensor for tensor in tensors if tensor.grad_fn is not None]
    for tensor in sorted(graphs, key=_number):
        newest[_likeness(tensor.grad_fn, site_of)] = tensor
    found = {}
    for site, end in ends.items():
        edges = ((node, after) for node in _nodes(end, set()) for after in _inputs(node))
        for node, after in edges:
            if after._sequence_nr() < begin <= node._sequence_nr():
                found[site] = newest.get(_likeness(after, site_of), end)
                break
    return found


def _likeness(node: Any, site_of: SiteOf) -> tuple[Site | None, str]:
    return site_of(node), node.name()


def _nodes(end: torch.Tensor, seen: set[Any]) -> Iterator[Any]:
    """The nodes of a graph that were not seen."""
    return nodes_from([end.grad_fn], seen, _MOST_NODES)


def _inputs(node: Any) -> list[Any]:
    return [after for after, _ in node.next_functions if after is not None]


def _number(tensor: torch.Tensor) -> int:
    return tensor.grad_fn._sequence_nr() if tensor.grad_fn is not None else 0


def _kinds(kind: type[torch.Tensor]) -> Iterator[type[torch.Tensor]]:
    yield kind
    for one in kind.__subclasses__():
        yield from _kinds(one)
