"""Run a program twice, the second time perturbed, and find where the runs part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from ptools import script
from ptools.errors import UsageError
from ptools.program.process import Processes, Runner
from ptools.repro.fingerprints.tolerance import check_tolerance, compare_by
from ptools.repro.job import ALWAYS, FIRST, Job
from ptools.repro.perturb import DEFAULT, NAMES
from ptools.repro.ranks.ranks import disagreement, same_batches
from ptools.repro.report import PARTS, ReproReport
from ptools.repro.search import Found, first_parting, follow, try_other_hashes
from ptools.repro.session import PLAIN, Session, Traces, Way


def repro_script(
    program: str,
    arguments: Sequence[str] = (),
    *,
    module: bool = False,
    perturb: Sequence[str] = DEFAULT,
    steps: int | None = None,
    exact: bool = False,
    tolerance: float | None = None,
    runner: Runner | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> ReproReport:
    """Run an unmodified program twice and compare what it computes.

    Args:
        program: a script's path; with `module` a module's name.
        perturb: what differs on purpose in the second run: hash (seed of hash()), fs (the order in
            which folders are listed), threads (their number), time (the clock).
        steps: end each run after so many optimizer steps.
        exact: compare each operation from the start to the end.
        tolerance: the relative error that floating-point numbers may have; None: bit for bit.
        runner: how the processes are run; `ptools launch` has another.
        say: is told what happens next.

    Raises:
        UsageError: there is no such script or module, no such perturbation or tolerance.
    """
    (script.check_module if module else script.check_script)(program)
    if unknown := set(perturb) - set(NAMES):
        raise UsageError(f"{unknown.pop()} cannot be perturbed", hint=f"give {', '.join(NAMES)}")
    check_tolerance(tolerance)
    words = ["module" if module else "script", program, *arguments]
    other = Way(tuple(perturb))
    with ExitStack() as stack:
        session = Session(words, steps, runner or Processes("ptools.repro.child"), say, stack)
        job = Job("", until=ALWAYS if exact else FIRST, numbers=tolerance is not None)
        first, second = session.run(PLAIN, job), session.run(other, job)
        found = first_parting(first, second, tolerance)
        is_empty = not any(trace.end.operations for trace in first.values())
        if found is None and "hash" in perturb and not is_empty:
            found, other = try_other_hashes(session, first, job, tolerance)
        if found is not None:
            found = follow(session, found, other, job, first)
        return _report(program, session, first, second, found, tolerance)


def _notes(traces: Traces) -> list[str]:
    return list(dict.fromkeys(note for one in traces.values() for note in one.end.notes))


def _report(
    program: str,
    session: Session,
    first: Traces,
    second: Traces,
    found: Found | None,
    tolerance: float | None,
) -> ReproReport:
    ranks = sorted(first.keys() & second.keys())
    compared = [compare_by(tolerance, first[rank], second[rank]) for rank in ranks]
    ends = [trace.end for trace in first.values()]  # read by now
    apart = disagreement(first)
    told = [*same_batches(first), *_notes(first), *_notes(second)]
    told += [apart.summary] if found and apart else []
    stopped = any(end.stopped for end in ends)  # and not by itself
    return ReproReport(
        program=program,
        verdict=found.verdict(len(ends)) if found else apart,
        runs=tuple(session.runs),
        notes=tuple(dict.fromkeys([*session.notes(), *told])),
        watched=any(end.watched for end in ends),
        ranks=len(ends),
        steps=max((end.steps for end in ends), default=0),
        beats=sum(one.beats for one in compared),
        operations=sum(end.operations for end in ends),
        nbytes=sum(end.nbytes for end in ends),
        errors=next((one.errors for one in compared), None),
        exit_code=PARTS if found or apart else 0 if stopped else session.runs[0].ended.code,
    )
