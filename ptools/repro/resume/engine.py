"""Run a program through, run it again and kill it, resume it, and compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from ptools import script
from ptools.errors import PtoolsError, UsageError
from ptools.program.process import Processes, Runner
from ptools.program.shown import line_of
from ptools.repro.job import Job
from ptools.repro.report import PARTS
from ptools.repro.resume.judge import Judgement, judge
from ptools.repro.resume.lost import Start
from ptools.repro.resume.record import Record, part, start_in
from ptools.repro.resume.report import ResumeReport
from ptools.repro.resume.state import parameters_key
from ptools.repro.session import PLAIN, Session

_MOST = 20  # steps that are compared after a resume
_TAIL = 6  # lines of an output
_NO_STEP = "it takes the training to be over: save how many steps were made"


def resume_script(
    program: str,
    arguments: Sequence[str] = (),
    *,
    at: int,
    more: Sequence[str] = (),
    module: bool = False,
    runner: Runner | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> ResumeReport:
    """Whether a program that is killed after a step and resumed goes on as if it had not been.

    Args:
        program: a script's path; with `module` a module's name.
        at: the optimizer steps after which it is killed, when what it saves then is saved.
        more: the arguments with which it resumes, after the others.
        runner: how the processes are run.
        say: is told what happens next.

    Raises:
        UsageError: there is no such script, or it does not take the arguments.
        PtoolsError: it cannot be told, since the program fails, ends before, or does not repeat.
    """
    (script.check_module if module else script.check_script)(program)
    words = ["module" if module else "script", program, *arguments]
    with ExitStack() as stack:
        runner = runner or Processes("ptools.repro.child")
        session = Session(words, None, runner, say, stack, leaves=False)
        a = _whole(session, at)
        say(f"running it again, to be killed after step {at}")
        killed = _run(session, Job("", until=0, resume=True, kill=at), goes_on=True)
        _check_repeats(a, killed, session)
        say("resuming it")
        b = _run(session, Job("", until=0, resume=True, goals=_goals(a, at)), more)
        ended = session.runs[-1].ended
        if not b.points and not b.error and ended.code:
            raise _refused(ended.code, ended.output, more)
        return _report(program, at, a, b, session)


def _run(session: Session, job: Job, more: Sequence[str] = (), goes_on: bool = False) -> Record:
    traces = session.run(PLAIN, job, more, goes_on)
    if 0 not in traces:
        raise PtoolsError("the script could not be started", hint="run it without ptools first")
    return Record(traces[0])


def _whole(session: Session, at: int) -> Record:
    """Run A, some steps beyond the one in question."""
    a = _run(session, Job("", until=0, resume=True, steps=at + min(at, _MOST)))
    code = session.runs[0].ended.code
    if a.error or code:
        raise PtoolsError(
            f"the script itself fails: {a.error or f'exit code {code}'}",
            hint="mend that first: nothing was resumed",
        )
    if not a.end.watched:
        raise PtoolsError("this program did not import torch", hint="give the script that trains")
    if not a.points:
        raise PtoolsError("no backward was seen", hint="give the script that trains")
    if a.end.steps <= at:
        raise PtoolsError(
            f"the script makes {a.end.steps} steps: nothing comes after step {at}",
            hint=f"give a smaller --resume-at, such as {max(1, a.end.steps // 2)}",
        )
    return a


def _check_repeats(a: Record, killed: Record, session: Session) -> None:
    """Only what repeats can be compared after a resume."""
    _, parted = part(a.events, killed.events, (True, killed.end.stopped), ())
    if parted is None:
        return
    if killed.error:
        raise PtoolsError(
            f"the script fails when it runs a second time: {killed.error}",
            hint="mend that first: nothing was resumed",
        )
    event = parted[0] or parted[1]
    assert event is not None
    place = a.place(event) if parted[0] else killed.place(event)
    where = f" at {line_of(place)}" if place else ""
    for note in session.notes():  # what run A wrote elsewhere may be why
        session.say(note)
    raise PtoolsError(
        f"the script does not repeat: two runs part at step {event.step}{where}, before any resume",
        hint="ptools repro SCRIPT finds why; if it found a checkpoint of the first run, have "
        "that written below the current folder",
    )


def _goals(a: Record, at: int) -> dict[str, int]:
    """The steps for a resumed run to make, up to where run A ends or just beyond."""
    beyond = 0 if a.end.stopped else 1
    goals: dict[str, int] = {}
    for number in a.points:
        event = a.events[number]
        if event.step <= at:
            goals.setdefault(parameters_key(event.values), a.end.steps - event.step + beyond)
    return goals


def _refused(code: int, output: str, more: Sequence[str]) -> UsageError:
    last = output.strip().splitlines()[-1:]
    given = f"with {' '.join(more)}" if more else "without further arguments"
    return UsageError(
        f"resumed {given}, the script ended with exit code {code}"
        + "".join(f": {one}" for one in last),
        hint="--resume-args takes the arguments with which the script itself resumes",
    )


def _report(program: str, at: int, a: Record, b: Record, session: Session) -> ResumeReport:
    if b.points:
        first = b.points[0]
        found = judge(Start(a, start_in(a, b.events[first], at), b, first), at)
    else:
        found = Judgement(parts="the resumed run makes no step", facts=(_NO_STEP,))
    if b.error:
        tail = session.runs[-1].ended.output.strip().splitlines()[-_TAIL:]
        found = replace(found, parts=f"the resumed run fails: {b.error}", facts=tuple(tail))
    return ResumeReport(
        program=program,
        resume_at=at,
        **{**vars(found), "notes": (*found.notes, *session.notes())},
        runs=tuple(session.runs),
        exit_code=PARTS if found.parts or found.lost else 0,
    )
