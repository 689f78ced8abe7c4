"""Watch a program, and run it again to find where what was seen began."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ptools import script
from ptools.console import counted
from ptools.debug.inplace.advice import of_error
from ptools.debug.job import VARIABLE, Job, Outcome, read_outcomes
from ptools.debug.report import DebugReport, Pass, make_report
from ptools.program.process import Processes, Runner

# What torch says, and the mode that finds its lines.
_TOLD_BY_TORCH = {
    "modified by an inplace operation": "inplace",
    "Trying to backward through the graph a second time": "inplace",
    "does not require grad and does not have a grad_fn": "autograd",
    "nan values in its": "nan",  # by its anomaly mode
    "contains either `inf`, `nan` or element < 0": "nan",  # of torch.multinomial
    "but found invalid values:": "nan",  # of torch.distributions
}
_LAST_LINES = 8


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
    runner: Runner | None = None,
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
        tensorboard: a folder for the histograms of mode autograd, or the curves of mode memory.
        runner: how the processes are run; `ptools launch` has another.
        say: is told what happens next.

    Raises:
        UsageError: there is no such script or module.
    """
    (script.check_module if module else script.check_script)(program)
    session = _Session(
        words=["module" if module else "script", program, *arguments],
        seed=random.SystemRandom().randrange(2**31) if seed is None else seed,
        keep_going=keep_going,
        tensorboard=None if tensorboard is None else str(Path(tensorboard).absolute()),
        runner=runner or Processes("ptools.debug.child"),
        say=say,
    )
    if mode == "watch" and at_step is not None:
        mode = "nan"
    session.run(mode, at_step=at_step)
    if mode == "watch" and rerun:
        session.follow()
    elif (telling := _mode_for(session.outcomes)) not in (None, mode):
        session.notes.append(f"--mode {telling} --seed {session.seed} tells the line")
    session.notes += _advice(session.outcomes)
    return make_report(program, mode, session.seed, session.passes, session.outcomes, session.notes)


class _Session:
    """The runs of one program, all with one seed; `outcomes` are those of the run that counts."""

    def __init__(
        self,
        words: Sequence[str],
        seed: int,
        keep_going: bool,
        tensorboard: str | None,
        runner: Runner,
        say: Callable[[str], None],
    ) -> None:
        self.seed = seed
        self.passes: list[Pass] = []
        self.outcomes: list[Outcome] = []
        self.notes: list[str] = []
        self._words = words
        self._keep_going = keep_going
        self._tensorboard = tensorboard
        self._runner = runner
        self._say = say

    def run(self, mode: str, start: int = 0, at_step: int | None = None) -> list[Outcome]:
        """One run; what its processes found."""
        asked = any(outcome.asked for outcome in self.outcomes)
        with tempfile.TemporaryDirectory(prefix="ptools-debug-") as folder:
            job = Job(
                mode=mode,
                folder=folder,
                seed=self.seed,
                start=start,
                at_step=at_step,
                keep_going=self._keep_going and mode != "watch",
                tensorboard=self._tensorboard,
                again=bool(self.passes),
            )
            variables = {VARIABLE: str(job.write()), "TORCHDYNAMO_DISABLE": "1"}
            variables |= {"PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0")}
            began = time.perf_counter()
            # What it asks a person must be seen again.
            ended = self._runner(self._words, variables, quiet=job.again and not asked)
            self.outcomes = list(read_outcomes(folder))
        steps = max((one.steps for one in self.outcomes), default=0)
        self.passes.append(Pass(mode, time.perf_counter() - began, steps, ended))
        return self.outcomes

    def follow(self) -> None:
        """Run again in the mode that tells where what was seen began."""
        seen, last = self.outcomes, self.passes[-1]
        mode = _mode_for(seen)
        if mode is None or last.ended.interrupted or not self._can_run_again():
            return
        # Before a step all was well, which may have lost parameters in itself.
        good = min(outcome.good_until for outcome in seen)
        start = max(good - 1, 0) if mode == "nan" else 0
        self._announce(_summary(seen), mode, start)
        again = self.run(mode, start)
        if start and _came_too_late(again):
            self._announce("values were not finite before that", mode, 0)
            again = self.run(mode)
        if not any(outcome.findings for outcome in again):
            self.outcomes = seen
            self.notes += self._why_nothing(seen, again)

    def _announce(self, what: str, mode: str, start: int) -> None:
        seconds = self.passes[-1].seconds
        asked = any(outcome.asked for outcome in self.outcomes)
        self._say(
            f"{what} (after {seconds:.1f} s): running again from the same seed in mode {mode}"
            + (f", traced from backward call {start:,} on" if start else "")
            + (". It asks again: answer as before" if asked else "")
        )

    def _can_run_again(self) -> bool:
        kind, name, *_ = self._words
        if Path(os.curdir).stat().st_nlink and (kind == "module" or Path(name).is_file()):
            return True
        self.notes.append(
            "it cannot be run again: the program has deleted its file or the folder it ran in"
        )
        return False

    def _why_nothing(self, seen: list[Outcome], again: list[Outcome]) -> list[str]:
        """Why the run after the one in which something was seen found nothing."""
        last = self.passes[-1]
        if last.ended.interrupted:
            return ["the second run was interrupted"]
        ends = [line for line in last.ended.output.splitlines() if line.strip()][-_LAST_LINES:]
        error = next((one.errors[0] for one in again if one.errors), "")
        if last.ended.code and not any(error in outcome.errors for outcome in seen):
            return ["the second run failed in another way, and ended with:", *ends]
        if error:
            return [f"the second run came to the same error; mode {last.mode} found no more"]
        return [
            f"the second run, of {counted(last.steps, 'step')}, did not show it: the program does "
            "not do the same each time. ptools repro finds where two runs part"
        ]


def _mode_for(outcomes: list[Outcome]) -> str | None:
    """The mode that finds where what was seen began."""
    said = "\n".join(error for outcome in outcomes for error in outcome.errors)
    for text, mode in _TOLD_BY_TORCH.items():
        if text in said:
            return mode
    return "nan" if any(outcome.findings for outcome in outcomes) else None


def _advice(outcomes: list[Outcome]) -> list[str]:
    """What to do about an error whose line torch has told."""
    if any(outcome.findings for outcome in outcomes):
        return []
    errors = [error for outcome in outcomes for error in outcome.errors]
    return [f"do: {advice}" for error in errors if (advice := of_error(error))]


def _summary(outcomes: list[Outcome]) -> str:
    for outcome in outcomes:
        for finding in outcome.findings:
            return f"{finding.summary} at step {finding.step}"
    return "torch raised an error"


def _came_too_late(outcomes: list[Outcome]) -> bool:
    return any(one.kind == "nan-before" for outcome in outcomes for one in outcome.findings)
