"""Runs of one program, each recorded."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from ptools.program.process import Runner
from ptools.repro.job import VARIABLE, Job
from ptools.repro.perturb import variables
from ptools.repro.report import Run
from ptools.repro.trace import Trace, traces_in

Traces = dict[int, Trace]  # by rank


@dataclass(frozen=True)
class Way:
    """How a run is perturbed."""

    perturbed: tuple[str, ...] = ()
    hash_seed: int = 2

    def variables(self) -> dict[str, str]:
        """The environment."""
        chosen = variables(self.perturbed, os.cpu_count() or 1)
        if "hash" in self.perturbed and "PYTHONHASHSEED" in chosen:
            chosen["PYTHONHASHSEED"] = str(self.hash_seed)
        return chosen

    def only(self, name: str) -> Way:
        """The same in one respect alone."""
        return replace(self, perturbed=(name,))


PLAIN = Way()


class Session:
    """The runs of one program."""

    def __init__(
        self,
        words: Sequence[str],
        steps: int | None,
        runner: Runner,
        say: Callable[[str], None],
        stack: ExitStack,
    ) -> None:
        self.runs: list[Run] = []
        self._words = words
        self._steps = steps
        self._runner = runner
        self.say = say
        self._stack = stack

    def run(self, way: Way, job: Job) -> Traces:
        """One run; what its processes did."""
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ptools-repro-"))
        job = replace(job, folder=folder, steps=self._steps, perturbed=way.perturbed)
        environment = {VARIABLE: str(job.write()), "TORCHDYNAMO_DISABLE": "1", **way.variables()}
        began = time.perf_counter()
        ended = self._runner(self._words, environment, quiet=bool(self.runs))
        self.runs.append(Run(way.perturbed, time.perf_counter() - began, ended))
        return traces_in(folder)
