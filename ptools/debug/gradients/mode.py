"""Mode `autograd`: parameters that are not trained, graphs that are cut, graphs that grow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptools.debug.findings import Finding, places_of
from ptools.debug.gradients.fates import ENOUGH, Fates
from ptools.debug.gradients.flow import Cut, Flow
from ptools.debug.gradients.graphs import Graphs
from ptools.debug.gradients.histograms import Histograms
from ptools.debug.gradients.missing import untrained
from ptools.debug.gradients.missing_told import behind
from ptools.debug.gradients.misuse import Misuse
from ptools.debug.gradients.sample_tables import sample_tables
from ptools.debug.gradients.samples import Samples
from ptools.debug.mode import Mode
from ptools.errors import PtoolsError
from ptools.program.spots import Spot

_CHANGED_BY_TRAINING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class Gradients(Mode):
    """Follows gradients from the losses to the parameters, and tells in the end what is amiss."""

    def __init__(self, *rest: Any, tensorboard: str | None = None) -> None:
        super().__init__(*rest)
        self._histograms = None if tensorboard is None else Histograms(_folder(tensorboard))
        self._fates = Fates(self.modules)
        self._flow = Flow(self.modules, self._fates)
        self._graphs = Graphs(self.modules, self._flow)
        self._misuse = Misuse(self._flow, self._fates)
        self._samples = Samples(self.modules, self._fates, self._histograms)
        self._detached: tuple[Spot, frozenset[Cut]] | None = None
        self._attached = 0  # backward calls whose loss has a graph
        self._testing: dict[str, bool] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self._fates.watching())
            stack.enter_context(self._samples.running())
            stack.enter_context(self._flow.following())
            yield

    def before_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        with self._flow.paused():
            cuts = frozenset().union(*map(self._flow.cuts_before, roots))
            if any(root.grad_fn is None for root in roots):
                self._detached = self._fates.here(), cuts
            else:
                self._attached += 1
            step = self.clock.steps if self._fates.optimizers else self.clock.ticks
            self._graphs.before_backward(roots, self.clock.ticks, step)
            self._misuse.before_backward()

    def after_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        with self._flow.paused():
            self._fates.after_backward()
            self._misuse.after_backward()
            if self.clock.ticks <= ENOUGH:
                self._note_testing()

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        with self._flow.paused():
            self._fates.hold(optimizer)
            self._misuse.before_step(optimizer)
            self._samples.before_step(optimizer)
        self._flow.optimizing = True

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._flow.optimizing = False
        with self._flow.paused():
            self._fates.optimizers[optimizer].steps += 1
            self._misuse.after_step(optimizer)
            self._samples.after_step(self.clock.steps)
            if self.clock.ticks & (self.clock.ticks - 1) == 0:
                self._fates.look()

    def finish(self) -> None:
        self._fates.look()
        for finding in self._findings():
            self.log.add(finding)  # most are about the whole run, and no step
        if self._samples.not_finite:
            self.log.note(
                "a gradient was not finite: --mode nan tells the line that made the first"
            )
        if self._samples.steps:
            self.log.tables += sample_tables(self._samples.series, self._samples.steps)
        if self._histograms is not None:
            try:
                self._histograms.write()
            except PtoolsError as error:
                self.log.note(f"no histograms: {error.message}")

    def _findings(self) -> Iterator[Finding]:
        if self._detached is not None:
            yield self._detached_loss(*self._detached)
        second = self._graphs.second_backward()
        if second is not None:
            yield second
        yield from self._misuse.findings()
        # Without a graph no parameter gets a gradient, which has been said then.
        if self._attached:
            result = untrained(self._fates, self._flow)
            yield from result.findings
            for note in result.notes:
                self.log.note(note)
        yield from self._graphs.findings
        for note in self._misuse.notes():
            self.log.note(note)
        for name in (name for name, testing in self._testing.items() if testing):
            self.log.note(
                f"{name} was trained in eval(): its dropout and batch norm do as in a test"
            )

    def _detached_loss(self, backward: Spot, cuts: frozenset[Cut]) -> Finding:
        summary = "the loss has no graph: backward can reach no parameter"
        seen = self._fates.place(backward)
        # The last of them is the nearest to the loss.
        cut = max(cuts, key=lambda cut: cut.order, default=None)
        if cut is not None:
            return behind(cut, summary, seen=seen)
        return Finding(
            kind="cut-graph",
            summary=summary,
            places=places_of(seen=seen),
            facts=("nothing that it was computed from required a gradient",),
            advice="set requires_grad of what is to be trained, and compute the loss from it",
        )

    def _note_testing(self) -> None:
        for root in self.modules.roots():
            parts = [one for one in root.modules() if isinstance(one, _CHANGED_BY_TRAINING)]
            held = any(self._fates.of(one).optimizer for one in root.parameters())
            testing = bool(parts) and held and not any(one.training for one in parts)
            name = self.modules.name(root)
            self._testing[name] = testing and self._testing.get(name, True)


def _folder(tensorboard: str) -> Path:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Path(tensorboard, f"rank_{os.environ['RANK']}") if several else Path(tensorboard)
