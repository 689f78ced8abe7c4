"""A second backward through a graph that is freed: the first one, and the line that kept it."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ptools.debug.calls import nodes_from
from ptools.debug.findings import Finding
from ptools.debug.inplace.advice import BACKWARD_TWICE, of_error
from ptools.debug.inplace.saved import Saved
from ptools.debug.mode import Mode
from ptools.program.spots import Spot, spot

CALLS = 8  # backward calls that are remembered


@dataclass
class _Call:
    """A backward call: its line, and the nodes that it went through, with the lines of theirs."""

    spot: Spot
    nodes: dict[int, Spot] = field(default_factory=dict)


class GraphAgain:
    """Remembers the last backward calls, to tell of the earlier one when torch refuses one."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._calls: deque[_Call] = deque(maxlen=CALLS)
        self._nodes: dict[int, Spot] = {}  # of the running call

    @property
    def was_called(self) -> bool:
        """Whether there was a backward at all."""
        return bool(self._calls)

    def used(self, saved: Saved) -> None:
        """A node has asked for what it saved."""
        self._nodes[saved.number] = saved.spot

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """Listen to all backward calls while the block runs."""
        owner: Any = torch.autograd
        backward, grad = owner.backward, owner.grad
        owner.backward, owner.grad = self._listening(backward), self._listening(grad)
        try:
            yield
        finally:
            owner.backward, owner.grad = backward, grad

    def _listening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(roots: Any, *args: Any, **kwargs: Any) -> Any:
            self._calls.append(_Call(spot(self._mode.modules, 2)))
            self._nodes = self._calls[-1].nodes
            try:
                return function(roots, *args, **kwargs)
            except RuntimeError as error:
                if BACKWARD_TWICE in str(error):
                    self._tell((roots,) if isinstance(roots, torch.Tensor) else tuple(roots))
                raise

        return call

    def _tell(self, roots: Sequence[torch.Tensor]) -> None:
        *earlier, last = self._calls
        # Nodes run in the order of their numbers, highest first; the one that failed is not among
        # those that this call went through.
        failed = _numbers(roots) - last.nodes.keys()
        kept, first = max(
            ((number, call) for call in earlier for number in failed & call.nodes.keys()),
            key=lambda found: found[0],
            default=(None, None),
        )
        spots = [("again", last.spot)]
        if kept is not None and first is not None:
            spots = [("kept", first.nodes[kept]), ("first", first.spot), *spots]
        places = ((role, one.place(self._mode.modules)) for role, one in spots)
        self._mode.found(
            Finding(
                kind="backward-twice",
                summary="a second backward goes through a graph that the first one freed",
                places=tuple((role, place) for role, place in places if place),
                advice=of_error(BACKWARD_TWICE) or "",
            )
        )


def _numbers(roots: Sequence[torch.Tensor]) -> set[int]:
    """The numbers of all nodes of a graph."""
    nodes = [root.grad_fn for root in roots if root.grad_fn is not None]
    return {node._sequence_nr() for node in nodes_from(nodes, set())}
