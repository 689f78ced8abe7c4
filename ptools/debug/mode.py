"""What the modes have in common: they are told the beats, and log what they find."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from ptools.debug.findings import Finding, Table
from ptools.program.clock import Clock
from ptools.program.modules import Modules
from ptools.program.places import Place
from ptools.program.spots import spot


class Stop(BaseException):
    """Ends the program when something was found; no `except Exception` of the user's catches it."""


class Log:
    """What was found so far. `keep_going` collects; else the first finding raises Stop."""

    def __init__(
        self, keep_going: bool = False, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.keep_going = keep_going
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.tables: list[Table] = []
        self._changed = changed
        self._known: set[object] = set()

    def add(self, finding: Finding) -> None:
        """Take a finding, once for each set of lines, and stop the program unless it may go on."""
        lines = finding.kind, tuple((role, one.file, one.line) for role, one in finding.places)
        if lines not in self._known:
            self._known.add(lines)
            self.findings.append(finding)
            self._changed()
        if not self.keep_going:
            raise Stop(finding.summary)

    def note(self, text: str) -> None:
        """Take a sentence for the reader, once."""
        if text not in self.notes:
            self.notes.append(text)


class Mode:
    """One way to watch a program. Everything does nothing unless a mode overrides it."""

    def __init__(self, log: Log, clock: Clock, modules: Modules) -> None:
        self.log = log
        self.clock = clock
        self.modules = modules
        self.failed = False  # the program ended in an error of its own
        self.good_until = 0  # backward calls that were begun when all was known to be well

    @contextmanager
    def running(self) -> Iterator[None]:
        """What has to be switched on while the program runs, and off again after it."""
        yield

    def before_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        """A backward from these tensors is about to begin; it is not yet counted."""

    def after_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        """It is through."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to change its parameters."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """It has."""

    def finish(self) -> None:
        """The program is through, well or not: last findings, notes and tables."""

    def found(self, finding: Finding) -> None:
        """Log a finding with the time at which it was made."""
        self.log.add(replace(finding, step=self.clock.steps, tick=self.clock.ticks))

    def here(self) -> Place | None:
        """The user's line that is running."""
        return spot(self.modules, 2).place(self.modules)


@contextmanager
def watching(mode: Mode) -> Iterator[None]:
    """Have a mode watch what the block does."""
    with ExitStack() as stack:
        stack.enter_context(mode.modules.watching())
        stack.enter_context(mode.clock.telling(mode))
        stack.enter_context(mode.running())
        _ACTIVE.append(stack)
        stack.callback(_ACTIVE.remove, stack)
        yield


def _end_in_child() -> None:
    """A forked process, as of a DataLoader, is not watched: what it does is not the training."""
    for stack in reversed(_ACTIVE.copy()):
        stack.close()


_ACTIVE: list[ExitStack] = []
os.register_at_fork(after_in_child=_end_in_child)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in an argument or result of an operation."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            if isinstance(one, torch.Tensor):
                yield one
