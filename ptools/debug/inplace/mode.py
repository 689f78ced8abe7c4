"""Mode `inplace`: where a tensor was saved for backward, and where it was changed afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from ptools.debug.inplace.finding import finding_of
from ptools.debug.inplace.graph_again import GraphAgain
from ptools.debug.inplace.saved import Ledger, Saved, same
from ptools.debug.inplace.threads import in_each_thread
from ptools.debug.inplace.writes import Writes
from ptools.debug.mode import Mode


class Inplace(Mode):
    """Takes the place of each tensor that autograd saves, and compares when backward asks for it.

    While a program's own saved-tensor hooks are in force, those of a checkpoint too, it is they
    that decide what backward gets: nothing is compared then, as torch itself does not.
    """

    def __init__(self, *rest: Any) -> None:
        super().__init__(*rest)
        self._ledger = Ledger(self.modules)
        self._again = GraphAgain(self)

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self._watched())
            stack.enter_context(in_each_thread(self._watched))
            stack.enter_context(self._stepping_aside())
            stack.enter_context(self._again.noticed())
            yield

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._ledger.optimizer = type(optimizer).__name__

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._ledger.optimizer = ""

    def finish(self) -> None:
        if not self._again.was_called:
            self.log.note("no backward was called: there was nothing to compare")

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Watch one thread: torch's modes and hooks are each thread's own."""
        with Writes(self._ledger, self.modules), saved_tensors_hooks(self._pack, self._unpack):
            yield

    def _pack(self, tensor: torch.Tensor) -> Saved:
        return self._ledger.save(tensor)

    def _unpack(self, saved: Saved) -> torch.Tensor:
        changed = saved.tensor._version != saved.version
        if changed or saved.before is not None:
            node = torch._C._current_autograd_node()
            if node is not None and (changed or _misled(node, saved)):
                self.found(finding_of(saved, node, self.modules))
        self._again.used(saved)
        return saved.tensor

    @contextmanager
    def _stepping_aside(self) -> Iterator[None]:
        """Let torch.func switch the hooks off, which it refuses to do while there are any."""
        owner: Any = torch._C._autograd
        disable = owner._saved_tensors_hooks_disable

        def disable_ours(message: str, fail_if_non_empty: bool = True) -> None:
            hooks = owner._top_saved_tensors_default_hooks(True)
            if hooks is not None and hooks[0] == self._pack:
                self.log.note("what torch.func saved was not watched: it allows no hooks")
                fail_if_non_empty = False
            disable(message, fail_if_non_empty)

        owner._saved_tensors_hooks_disable = disable_ours
        try:
            yield
        finally:
            owner._saved_tensors_hooks_disable = disable


def _misled(node: Any, saved: Saved) -> bool:
    """Whether a change that torch missed falsifies what the node computes."""
    if saved.before is None or same(saved.tensor, saved.before):
        return False
    # In training the running statistics are saved too, but not used.
    vectors = saved.tensor.dim() == 1 and "BatchNorm" in node.name()
    return not (vectors and getattr(node, "_saved_training", True))
