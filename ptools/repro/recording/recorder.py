"""Records a program while it runs: its beats always, each operation within a window."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ptools.dispatch import Unseen
from ptools.program.batches import batches_told
from ptools.program.clock import Clock
from ptools.program.modules import Modules
from ptools.program.spots import Spot, spot
from ptools.repro.events import END, PARAMETERS, REPLICAS, End, Event, Value
from ptools.repro.job import Job
from ptools.repro.ranks import together
from ptools.repro.ranks.replicas import replicas
from ptools.repro.recording.digests import Digester
from ptools.repro.recording.leaves import value_of, values_in, values_of_batch
from ptools.repro.recording.operations import Operation
from ptools.repro.recording.states import state_by_name, state_in_short
from ptools.repro.recording.taps import tapped
from ptools.repro.recording.tracer import Tracer
from ptools.repro.trace import TraceWriter

_MANY = 20_000  # operations at the start: what prepares data should not take for ever
_EVERY = 8  # steps


class Stop(BaseException):
    """Ends the program when enough is known; no `except Exception` of the user's catches it.

    `cut`: there are other processes, which go on.
    """

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut


class Recorder:
    """Writes the events of a program to a trace; a clock tells it the beats.

    Args:
        children: the folder in which processes of its own note what they take in.
    """

    def __init__(self, trace: TraceWriter, job: Job, children: Path | None = None) -> None:
        self.clock = Clock()
        self.digester = Digester(job.numbers)
        self.modules = Modules()
        self.events = 0
        self.operations = 0
        self._beats = 0
        self._stepping = 0  # optimizers that are at work, one within another
        self.children = children
        self._trace = trace
        self._job = job
        self._tracer = Tracer(self.modules, self.digester, self._operated, self.entered)
        self._fetching = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record while the block runs."""
        with ExitStack() as stack:
            stack.enter_context(self.modules.watching())
            stack.enter_context(tapped(self))
            stack.enter_context(self.clock.telling(self))
            stack.enter_context(batches_told(self._got_batch))
            stack.callback(self._tracer.switch, False)
            self._move()
            _ACTIVE.append(stack)
            stack.callback(_ACTIVE.remove, stack)
            yield

    def before_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        """A beat: the losses."""
        with Unseen():
            values = [value_of("the loss", one, self.digester) for one in roots]
        self._beat("loss", "the loss", values, spot(self.modules))

    def after_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        """No beat."""

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """No beat."""
        self._stepping += 1

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """A beat, of the first steps and then of each eighth: the state."""
        self._stepping -= 1
        count = self.clock.optimizers[optimizer]
        last = self._job.steps is not None and self.clock.steps >= self._job.steps
        if count <= _EVERY or count % _EVERY == 0 or last:
            self._state([optimizer])
            if not self._stepping:
                self._tell_replicas()
        if last:
            self._come_to_the_end(together.own_rank())

    def finish(self) -> None:
        """The program is through: a last beat of all that is there."""
        self._job = replace(self._job, stop=None)  # it ends by itself
        if self.clock.optimizers or self.modules.roots():
            self._state(list(self.clock.optimizers), END)

    def entered(self, what: str, tensor: torch.Tensor) -> None:
        """Torch took over memory that was filled without it."""
        if self._tracer.is_on and not self._tracer.is_quiet:
            with Unseen():
                values = (value_of("the memory", tensor, self.digester),)
            self._write("enter", what, values, spot(self.modules, 2))

    def given(self, optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> None:
        """An optimizer was given parameters."""
        if self._tracer.is_on:
            with Unseen():
                values = [value_of("parameter", one, self.digester) for one in parameters]
            name = f"{PARAMETERS}{type(optimizer).__name__}"
            self._write("enter", name, tuple(values), spot(self.modules, 2))

    def evaluated(self, out: Any) -> None:
        """A beat: what a model computed without gradients."""
        with Unseen():
            values = values_in(out, "the output", self.digester)
        self._beat("output", "a model's output", values, spot(self.modules, 2))

    @contextmanager
    def fetching(self, aside: bool) -> Iterator[None]:
        """A DataLoader is at work; `aside`: what it does here is not the program's."""
        before = self._fetching, self._tracer.is_quiet
        self._fetching, self._tracer.is_quiet = True, aside
        try:
            yield
        finally:
            self._fetching, self._tracer.is_quiet = before

    def _got_batch(self, batch: Any, samples: Any) -> None:
        with Unseen():
            values = values_of_batch(batch, self.digester, samples=self._tracer.is_on)
        known = isinstance(samples, list) and all(isinstance(one, int | str) for one in samples)
        self._beat(
            "batch", "a batch", values, spot(self.modules, 2), tuple(samples) if known else ()
        )

    def _state(self, optimizers: list[torch.optim.Optimizer], name: str = "the state") -> None:
        with Unseen():
            told = state_by_name if self._tracer.is_on else state_in_short
            values = told(optimizers, self.modules, self.digester)
        here = Spot(None, None, None) if name == END else spot(self.modules, 2)
        self._beat("state", name, values, here)

    def _tell_replicas(self) -> None:
        with Unseen():
            held = replicas(list(self.clock.optimizers), self.modules, self.digester)
        if held:
            self._write(REPLICAS, "the parameters", tuple(held), spot(self.modules, 2))

    def _beat(
        self, kind: str, name: str, values: list[Value], here: Spot, samples: tuple[Any, ...] = ()
    ) -> None:
        self._write(kind, name, tuple(values), here, samples=samples)
        self._beats += 1
        self._move()
        if self._job.stop is not None and self._beats >= self._job.stop:
            self._come_to_the_end(self._job.rank)

    def _come_to_the_end(self, leader: int) -> None:
        met = together.meet(self._job.folder, leader)
        if not met and together.own_rank() != leader:
            self._job = replace(self._job, stop=None)  # the leader cannot come without this process
            return
        if not met:
            self._trace.end(End(ended=True, stopped=True, watched=True, steps=self.clock.steps))
            together.hurry()
        raise Stop(cut=not met)

    def _move(self) -> None:
        """Record operations, or do so no more."""
        self._tracer.switch(self._job.start <= self._beats < self._job.until)

    def _operated(
        self,
        operation: Operation,
        values: tuple[Value, ...],
        generator: int | None,
        here: Spot,
        backward: bool,
        unwritten: bool,
    ) -> None:
        self.operations += 1
        self._write(
            "op",
            operation.name,
            values,
            here,
            generator=generator,
            backward=backward,
            unwritten=unwritten,
        )

    def _write(
        self, kind: str, name: str, values: tuple[Value, ...], here: Spot, **more: Any
    ) -> None:
        place = self._trace.place(here, self.modules)
        step, fetching = self.clock.steps, self._fetching
        self._trace.event(Event(kind, name, step, place, values, fetching=fetching, **more))
        self.events += 1


def _end_in_child() -> None:
    """A forked process, as of a DataLoader, is not recorded: what it does comes in any order."""
    for stack in reversed(_ACTIVE.copy()):
        stack.close()


_ACTIVE: list[ExitStack] = []
os.register_at_fork(after_in_child=_end_in_child)
