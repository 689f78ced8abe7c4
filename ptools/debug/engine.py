"""Watch a program, and run it again to find where what was seen began."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ptools.debug.findings import Finding, of_rank
from ptools.debug.job import VARIABLE, Job, Outcome, read_outcomes
from ptools.debug.process import run as run_process
from ptools.debug.report import FOUND, DebugReport, Pass
from ptools.errors import UsageError

Runner = Callable[[Sequence[str], Mapping[str, str], Path | None], int]
_INPLACE = "modified by an inplace operation"


def debug_script(
    program: str,
    arguments: Sequence[str] = (),
    *,
    mode: str = "watch",
    module: bool = False,
    at_step: int | None = None,
    rerun: bool = True,
    keep_going: bool = False,
    seed: int | None = None,
    tensorboard: str | None = None,
    runner: Runner = run_process,
    say: Callable[[str], None] = lambda text: None,
) -> DebugReport:
    """Run an unmodified program under a mode, in processes of its own.

    Args:
        program: a script's path; with `module` a module's name.
        mode: watch, nan, inplace, autograd or memory. `watch` costs next to nothing and runs the
            program again, traced, when it has seen something.
        at_step: trace from this step on (optimizer steps completed), without watching first.
        rerun: False leaves it at what was seen.
        keep_going: collect findings instead of stopping at the first.
        seed: for Python's, NumPy's and torch's generators; drawn anew if not given.
        tensorboard: a folder for the histograms of mode autograd.
        runner: how the processes are run; tests and `ptools launch` have others.
        say: is told what happens next.

    Raises:
        UsageError: there is no such script.
    """
    if not module and not Path(program).is_file():
        raise UsageError(f"there is no script {program}", hint="name a file, or use -m MODULE")
    session = _Session(
        words=["module" if module else "script", program, *arguments],
        seed=random.SystemRandom().randrange(2**31) if seed is None else seed,
        keep_going=keep_going,
        tensorboard=tensorboard,
        runner=runner,
    )
    if mode == "watch" and at_step is not None:
        mode = "nan"
    outcomes = session.run(mode, at_step=at_step)
    if mode == "watch" and rerun:
        session.follow(outcomes, say)
    return session.report(program, mode)


class _Session:
    """The runs of one program, all with one seed."""

    def __init__(
        self,
        words: Sequence[str],
        seed: int,
        keep_going: bool,
        tensorboard: str | None,
        runner: Runner,
    ) -> None:
        self._words = words
        self._seed = seed
        self._keep_going = keep_going
        self._tensorboard = tensorboard
        self._runner = runner
        self._passes: list[Pass] = []
        self._outcomes: list[Outcome] = []
        self._notes: list[str] = []

    def run(
        self, mode: str, start: int = 0, at_step: int | None = None, quiet: bool = False
    ) -> list[Outcome]:
        """One run; what its processes found."""
        with tempfile.TemporaryDirectory(prefix="ptools-debug-") as folder:
            job = Job(
                mode=mode,
                folder=folder,
                seed=self._seed,
                start=start,
                at_step=at_step,
                keep_going=self._keep_going and mode != "watch",
                tensorboard=self._tensorboard,
            )
            variables = {VARIABLE: str(job.write()), "TORCHDYNAMO_DISABLE": "1"}
            variables |= {"PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0")}
            began = time.perf_counter()
            log = Path(folder, "output.log") if quiet else None
            code = self._runner(self._words, variables, log)
            outcomes = list(read_outcomes(folder))
        steps = max((one.steps for one in outcomes), default=0)
        self._passes.append(Pass(mode, time.perf_counter() - began, code, steps))
        self._outcomes = outcomes
        return outcomes

    def follow(self, outcomes: list[Outcome], say: Callable[[str], None]) -> None:
        """Run again in the mode that tells where what was seen began."""
        seen = [finding for outcome in outcomes for finding in outcome.findings]
        if any(_INPLACE in (outcome.error or "") for outcome in outcomes):
            say("torch found a tensor changed in place: running again to find both lines")
            self.run("inplace", quiet=True)
        elif seen:
            tick = min(finding.tick or 0 for finding in seen)
            say(f"{seen[0].summary} at step {seen[0].step}: running again to find where it began")
            # Parameters may have been lost in the step before the one that was seen.
            again = self.run("nan", start=max(tick - 2, 0), quiet=True)
            if not any(outcome.findings for outcome in again):
                self._outcomes = outcomes
                self._notes.append(
                    "the second run did not go the same way: ptools repro finds why two runs part"
                )

    def report(self, program: str, mode: str) -> DebugReport:
        """What came of it all."""
        several = len(self._outcomes) > 1
        findings: list[Finding] = [
            of_rank(finding, outcome.rank) if several else finding
            for outcome in self._outcomes
            for finding in outcome.findings
        ]
        findings.sort(key=lambda finding: finding.tick or 0)
        notes = dict.fromkeys(note for outcome in self._outcomes for note in outcome.notes)
        return DebugReport(
            program=program,
            mode=mode,
            seed=self._seed,
            passes=tuple(self._passes),
            findings=tuple(findings),
            notes=(*notes, *self._notes),
            tables=tuple(table for outcome in self._outcomes for table in outcome.tables),
            exit_code=FOUND if findings else self._passes[0].exit_code,
        )
