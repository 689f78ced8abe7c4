"""The line of the forward for each node of a backward."""

from __future__ import annotations

from typing import Any

from torch._C import _current_autograd_node, _current_graph_task_id

from ptools.program.modules import Modules
from ptools.program.spots import Spot, caller_of_function, in_users_backward, spot

_KEPT = 100_000  # of nodes whose backward may yet come
_BETWEEN = 8


class Lines:
    """Spots by the sequence number that torch gives to each node it makes.

    torch's anomaly mode formats a traceback for each node instead, which costs three times the
    training.
    """

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._spots: dict[int, Spot] = {}
        self._last = -1

    def note(self, number: int) -> None:
        """The operation that runs has just made this node."""
        last, self._last = self._last, number
        if number in self._spots:
            return
        if last in self._spots and number - last < _BETWEEN:
            # An operation that writes to a view makes more nodes when it is through.
            for between in range(last + 1, number):
                self._spots[between] = self._spots[last]
        within = _current_graph_task_id() == -1 and caller_of_function(self._modules)
        self._spots[number] = within or self.current()
        if len(self._spots) > _KEPT:
            for old in list(self._spots)[: _KEPT // 2]:
                del self._spots[old]

    def of(self, node: Any) -> Spot | None:
        """The line at which a node was made."""
        return self._spots.get(node._sequence_nr()) if node is not None else None

    def current(self) -> Spot:
        """The user's line; for what a backward does the line of the forward."""
        if _current_graph_task_id() != -1 and not in_users_backward():
            line = self.of(_current_autograd_node())
            if line is not None:
                return line
        return spot(self._modules)
