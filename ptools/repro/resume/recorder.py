"""Records a run that a resumed one is compared with, is resumed from, or is the resumed one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ptools.repro.events import End as Ended
from ptools.repro.job import Job
from ptools.repro.recording.recorder import Recorder, Stop
from ptools.repro.resume.points import Points
from ptools.repro.resume.state import END, FORWARD, POINT, parameters_key
from ptools.repro.trace import TraceWriter


class ResumeRecorder(Recorder):
    """Records batches, losses and outputs, and the whole state at each forward."""

    def __init__(self, trace: TraceWriter, job: Job, children: Path) -> None:
        super().__init__(trace, job, children)
        self._points = Points(self.modules, self.digester)
        self._is_first = True

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record while the block runs."""
        with super().recording(), self._points.watching():
            yield

    def before_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        """A point, and a beat: the losses."""
        self._point(FORWARD)
        kill = self._job.kill
        if kill is not None and self.clock.steps >= kill:
            self._trace.end(Ended(stopped=True, watched=True, steps=self.clock.steps))
            os._exit(0)  # as kill -9 would: what was to be saved at the end is not
        super().before_backward(roots)

    def after_backward(self, roots: tuple[torch.Tensor, ...]) -> None:
        """No beat."""
        self._points.count(stepped=False)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """No beat, but for the last: a point."""
        self._points.count(stepped=True)
        if self._job.steps is not None and self.clock.steps >= self._job.steps:
            self._point(END)
            raise Stop(cut=False)

    def finish(self) -> None:
        """The program is through: a last point."""
        self._points.renew()
        self._point(END)

    def _got_batch(self, batch: Any, samples: Any) -> None:
        self._points.renew()
        super()._got_batch(batch, samples)

    def _point(self, name: str) -> None:
        values, here = self._points.point()
        if self._is_first and self._job.goals:
            steps = self._job.goals.get(parameters_key(values), 1)
            self._job = replace(self._job, steps=steps)
        self._is_first = False
        self._write(POINT, name, tuple(values), here)
