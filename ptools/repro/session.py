"""Runs of one program, each recorded."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ptools.cores import usable_cores
from ptools.program.process import Runner
from ptools.repro.job import VARIABLE, Job
from ptools.repro.outputs.outputs import Outputs
from ptools.repro.perturb import kept, variables
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
        chosen = variables(self.perturbed, usable_cores())
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
        leaves: bool = True,
    ) -> None:
        self.runs: list[Run] = []
        self._words = words
        self._steps = steps
        self._runner = runner
        self.say = say
        self._stack = stack
        self._outputs = Outputs(leaves=leaves)
        self._place: Path | None = None  # of a run that another goes on from
        stack.callback(self._outputs.close)

    def notes(self) -> list[str]:
        """What a reader should know of the runs."""
        perturbed = {name for one in self.runs for name in one.perturbed}
        return [*kept(perturbed), *self._outputs.notes]

    def run(self, way: Way, job: Job, more: Sequence[str] = (), goes_on: bool = False) -> Traces:
        """One run; what its processes did.

        Args:
            more: arguments after those that all runs have.
            goes_on: the next run finds the files as this one leaves them.
        """
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ptools-repro-"))
        job = replace(
            job,
            folder=folder,
            steps=self._steps if job.steps is None else job.steps,
            perturbed=way.perturbed,
            outputs=str(self._place or self._outputs.before()),
        )
        environment = {VARIABLE: str(job.write()), "TORCHDYNAMO_DISABLE": "1", **way.variables()}
        began = time.perf_counter()
        ended = self._runner([*self._words, *more], environment, quiet=bool(self.runs))
        self._place = Path(job.outputs) if goes_on else None
        if not goes_on:
            self._outputs.after_run()
        if ended.interrupted:
            raise KeyboardInterrupt
        self.runs.append(Run(way.perturbed, time.perf_counter() - began, ended))
        return traces_in(folder)
