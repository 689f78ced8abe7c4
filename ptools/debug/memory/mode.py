"""Mode `memory`: tensor memory over time, which lines hold it at the peak, and what leaks."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptools.debug.memory.books import Books
from ptools.debug.memory.leaks import Leaks
from ptools.debug.memory.sites import BACKWARD, STEP, line_of
from ptools.debug.memory.storages import ACTIVATIONS, BUFFERS, GRADIENTS, OPTIMIZER
from ptools.debug.memory.tables import tables
from ptools.debug.memory.trace import Timeline
from ptools.debug.memory.tracker import GRAPH, Tracker
from ptools.debug.mode import Mode
from ptools.errors import UsageError


class Memory(Mode):
    """Keeps books of all storages; at the end tells the peak and what grew from step to step."""

    def __init__(self, *rest: Any, tensorboard: str | None = None) -> None:
        super().__init__(*rest)
        self._folder = Path(tensorboard) if tensorboard else None
        self._timeline = Timeline() if tensorboard else None
        self.books = Books(self.clock, self._timeline)
        self._tracker = Tracker(self.modules, self.books)
        self.leaks = Leaks(self.books, self._tracker.site_of, self.modules)
        self._steps = 0
        self._known: weakref.WeakSet[nn.Module | torch.optim.Optimizer] = weakref.WeakSet()

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._tracker:
            yield

    def before_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        self._know()
        self.books.turned_out(GRAPH, ACTIVATIONS)

    def after_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        self.books.turned_out(BACKWARD, GRADIENTS)
        if not self._steps:
            self._end_step(self.clock.ticks)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        if optimizer not in self._known:
            self._known.add(optimizer)
            states = optimizer.state.values()  # of a checkpoint
            self.books.are(OPTIMIZER, (one for state in states for one in _tensors(state)))
        self._tracker.stepping = True

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._tracker.stepping = False
        self.books.turned_out(STEP, OPTIMIZER)
        if self.clock.steps > self._steps:  # not so for the slower one of two optimizers
            if not self._steps:
                self.leaks.begin()  # steps were backward calls so far
            self._steps = self.clock.steps
            self._end_step(self._steps)

    def finish(self) -> None:
        self._know()
        self._settle()
        self.leaks.finish()
        self.log.tables += tables(self.books, self.leaks.steps, self.modules)
        for finding in self.leaks.findings():
            self.found(finding)
        for growth in self.leaks.unexplained():
            self.log.note(
                f"ever more tensors of {line_of(growth.site, self.modules)} were alive, and no "
                "variable was found that keeps them: it went with a function that had ended, or it "
                "is a reference cycle, which gc.collect() frees, or an extension"
            )
        self._tell()
        self.books.release()

    def _end_step(self, step: int) -> None:
        self.books.survived()
        self._settle()
        self.leaks.end_step(step)
        if self._timeline is not None:
            self._timeline.step(step)

    def _settle(self) -> None:
        """Work out new peaks, and name their modules while these are alive."""
        for ledger in self.books.ledgers.values():
            if ledger.settle():
                for held in ledger.peak.held:
                    held.site.name(self.modules)

    def _know(self) -> None:
        """Ask new models for their buffers."""
        for root in self.modules.roots():
            if root not in self._known:
                self._known.add(root)
                self.books.are(BUFFERS, root.buffers())

    def _tell(self) -> None:
        self.log.note(
            "counted are the storages of tensors; not what the allocator rounds up or keeps free, "
            "the CUDA context, the workspaces inside an operation, or autograd's own nodes"
        )
        if self.books.opaque:
            self.log.note("tensors that hide their memory, such as MKL-DNN's, are not counted")
        if not self.clock.ticks and not self.clock.steps:
            self.log.note(
                "the program called no backward and no optimizer: there are no steps from which "
                "to tell a leak"
            )
        if self._timeline is not None and self._folder is not None:
            self._write(self._timeline, self._folder)

    def _write(self, timeline: Timeline, folder: Path) -> None:
        try:
            path = timeline.write(folder)
        except UsageError as error:
            self.log.note(f"the memory over time is not written: {error}")
        else:
            self.log.note(
                f"memory over time: tensorboard --logdir {folder}, or open {path} in "
                "ui.perfetto.dev"
            )


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    values = state.values() if isinstance(state, dict) else ()
    return (value for value in values if isinstance(value, torch.Tensor))
