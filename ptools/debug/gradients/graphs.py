"""Graphs that live longer than their step: kept by a variable, or grown from step to step."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from ptools.debug.calls import node_of, nodes_from
from ptools.debug.findings import Finding, places_of
from ptools.debug.gradients.flow import Flow
from ptools.debug.variables import Variables
from ptools.program.modules import Modules
from ptools.program.places import Place

_KEY = "ptools"
_GROWTH = 3  # steps in a row
_NODES = 200_000
_EACH = 16  # backward calls are all looked at so long, then ever fewer


class Sentinel:
    """Lies in the last node of a graph, and lives as long as that does."""

    __slots__ = ("__weakref__", "node", "step")

    def __init__(self, step: int, node: int) -> None:
        self.step = step
        self.node = node


@dataclass(frozen=True)
class _Walk:
    """A walk through a graph: what in it is older than the last step, and where that begins."""

    old: int = 0
    read: Place | None = None
    made: Place | None = None


class Graphs:
    """Watches the graphs of successive backward calls."""

    def __init__(self, modules: Modules, flow: Flow) -> None:
        self._modules = modules
        self._flow = flow
        self._sentinels: list[weakref.ref[Sentinel]] = []
        self._alive: list[int] = []  # steps whose graphs were alive, at the first backward of each
        self._old: list[int] = []  # old nodes in each graph that was walked through
        self._step = -1
        self._floor = 0  # nodes below this number belong to earlier steps
        self._last = 0
        self._into_old: _Walk | None = None
        self.findings: list[Finding] = []

    def before_backward(self, roots: tuple[torch.Tensor, ...], tick: int, step: int) -> None:
        """Look at the graph that is about to be gone through, and at those still alive."""
        if step != self._step:
            self._step, self._floor = step, self._last
            self._look_for_kept()
        nodes: list[Any] = [root.grad_fn for root in roots if root.grad_fn is not None]
        if tick < _EACH or tick & (tick - 1) == 0:
            self._look_for_grown(nodes)
        for node in nodes:
            sentinel = Sentinel(step, node._sequence_nr())
            node.metadata[_KEY] = sentinel
            self._sentinels.append(weakref.ref(sentinel))
        self._last = torch._C._autograd._get_sequence_nr()

    def second_backward(self) -> Finding | None:
        """What torch's error about a second backward is about, if it raised one."""
        walk = self._into_old
        if "backward through the graph a second time" not in self._flow.failed or walk is None:
            return None
        return Finding(
            kind="second-backward",
            summary="the backward goes into the graph of an earlier step",
            places=places_of(read=walk.read, made=walk.made),
            facts=("that graph was gone through before, and freed",),
            advice="detach what is carried from step to step: state = state.detach()",
        )

    def _look_for_kept(self) -> None:
        living = [one for one in (ref() for ref in self._sentinels) if one is not None]
        self._sentinels = [weakref.ref(one) for one in living]
        # The last step's loss is alive until the name is bound again.
        old = [one for one in living if one.step < self._step - 1]
        self._alive.append(len({one.step for one in old}))
        if _grows(self._alive) and not any(one.kind == "kept-graph" for one in self.findings):
            nodes = {one.node for one in old}
            del living, old
            self._add_kept(nodes)

    def _add_kept(self, nodes: set[int]) -> None:
        keeper = _keeper(nodes)
        variable = keeper is not None and Variables(self._modules).that_keeps(keeper)
        made = None if keeper is None else self._flow.line(keeper.grad_fn)
        what = f"{variable.text} keeps" if variable else "something keeps"
        self.findings.append(
            Finding(
                kind="kept-graph",
                summary=f"{what} the graphs of earlier steps alive, one more at each step",
                places=places_of(made=made),
                facts=(
                    f"at step {self._step} those of {self._alive[-1]} earlier steps were alive",
                ),
                advice="keep the number, not the graph: loss.item() or loss.detach()",
            )
        )

    def _look_for_grown(self, nodes: list[Any]) -> None:
        walk = self._walk(nodes)
        self._into_old = walk if walk.old else None
        self._old.append(walk.old)
        known = any(one.kind == "grown-graph" for one in self.findings)
        if _grows(self._old) and self._old[-1 - _GROWTH] > 0 and not known:
            self.findings.append(
                Finding(
                    kind="grown-graph",
                    summary="each backward goes through the graphs of all earlier steps",
                    places=places_of(read=walk.read, made=walk.made),
                    facts=(
                        "nodes of earlier steps in the last graphs: "
                        + ", ".join(f"{count:,}" for count in self._old[-1 - _GROWTH :]),
                    ),
                    advice="detach what is carried from step to step: state = state.detach()",
                )
            )

    def _walk(self, nodes: list[Any]) -> _Walk:
        seen, waiting, old, edge = set(nodes), list(nodes), 0, None
        while waiting and len(seen) < _NODES:
            node = waiting.pop()
            for one, _ in node.next_functions:
                if one is None or one in seen:
                    continue
                seen.add(one)
                waiting.append(one)
                if one._sequence_nr() < self._floor:
                    old += 1
                    if edge is None and node._sequence_nr() >= self._floor:
                        edge = node, one
        if edge is None:
            return _Walk(old)
        return _Walk(old, *map(self._flow.line, edge))


def _grows(counts: list[int]) -> bool:
    last = counts[-1 - _GROWTH :]
    return len(last) > _GROWTH and all(a < b for a, b in pairwise(last))


def _keeper(wanted: set[int]) -> torch.Tensor | None:
    """The living tensor from which most of the wanted nodes are reached."""
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    graphs = [(node, one) for one in tensors if (node := node_of(one)) is not None]
    # The newest first: a sum of losses is newer than all that it keeps.
    graphs.sort(key=lambda pair: pair[0]._sequence_nr(), reverse=True)
    seen: set[Any] = set()
    best, most = None, 0
    for node, tensor in graphs:
        count = _count(node, wanted, seen)
        if count > most:
            best, most = tensor, count
    return best


def _count(node: Any, wanted: set[int], seen: set[Any]) -> int:
    """How many wanted nodes are reached from a node through nodes that were not seen."""
    return sum(one._sequence_nr() in wanted for one in nodes_from([node], seen, _NODES))
