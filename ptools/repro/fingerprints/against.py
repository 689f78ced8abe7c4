"""Record a program's fingerprint, and compare a run of it with one that was recorded before."""

from __future__ import annotations

import json
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ptools import script
from ptools.errors import PtoolsError, UsageError
from ptools.files import atomic_write
from ptools.program.process import Processes, Runner
from ptools.repro.events import BEATS
from ptools.repro.fingerprints.beside import beside
from ptools.repro.fingerprints.recordfile import About, pack, read_record, whole
from ptools.repro.fingerprints.surroundings import commit_of
from ptools.repro.fingerprints.tolerance import check_tolerance
from ptools.repro.job import ALWAYS, FIRST, Job
from ptools.repro.report import PARTS, ReproReport
from ptools.repro.session import PLAIN, Session
from ptools.repro.trace import Trace

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recorded:
    """What was recorded; `nbytes` is the size of the file `record`, `exit_code` the program's."""

    program: str
    arguments: tuple[str, ...]
    module: bool
    record: str
    nbytes: int
    steps: int
    beats: int
    operations: int
    seconds: float
    exit_code: int

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def record_script(
    program: str,
    arguments: Sequence[str] = (),
    *,
    record: str | Path,
    force: bool = False,
    module: bool = False,
    steps: int | None = None,
    exact: bool = False,
    runner: Runner | None = None,
    say: Say = lambda text: None,
) -> Recorded:
    """Run an unmodified program once and write its fingerprint to a file.

    Args:
        program: a script's path; with `module` a module's name.
        record: the file.
        force: replace a file that exists.
        steps: end the run after so many optimizer steps.
        exact: record each operation to the end, and not only at the start.
        runner: how the process is run.
        say: is told what happens next.

    Raises:
        UsageError: there is no such program, or the file exists or cannot be written.
        PtoolsError: there was nothing to record, or no time to write it.
    """
    until = ALWAYS if exact else FIRST
    job = Job("", until=until, steps=steps, numbers=True, surroundings=True)
    with atomic_write(record, force) as temporary:
        with ExitStack() as stack:
            session = _session(program, arguments, module, runner, say, stack)
            trace = _run(session, job)
            beats = sum(1 for one in trace.events() if one.kind in BEATS)
            _check(trace, session.runs[0].ended.code)
            packed = pack(_lines(trace))
        about = About(
            program=program,
            arguments=tuple(arguments),
            until=until,
            steps=steps,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            environment={**_named(program, arguments, module), **trace.end.environment},
        )
        temporary.write_bytes(whole(about, packed))
    (run,) = session.runs
    return Recorded(
        program=program,
        arguments=tuple(arguments),
        module=module,
        record=str(record),
        nbytes=Path(record).stat().st_size,
        steps=trace.end.steps,
        beats=beats,
        operations=trace.end.operations,
        seconds=run.seconds,
        exit_code=0 if trace.end.stopped else run.ended.code,
    )


def repro_against(
    program: str,
    arguments: Sequence[str] = (),
    *,
    record: str | Path,
    module: bool = False,
    steps: int | None = None,
    exact: bool = False,
    tolerance: float | None = None,
    runner: Runner | None = None,
    say: Say = lambda text: None,
) -> ReproReport:
    """Run an unmodified program once and compare it with a record, of another machine or version.

    Args:
        program: a script's path; with `module` a module's name.
        record: the file that `record_script` wrote; it tells how the program is recorded.
        steps, exact: are refused if the record has others.
        tolerance: the relative error that floating-point numbers may have; None: bit for bit.
        runner: how the process is run.
        say: is told what happens next.

    Raises:
        UsageError: there is no such program or record, or it was recorded in another way.
        PtoolsError: the record is damaged, or of a newer format.
    """
    check_tolerance(tolerance)
    about, packed = read_record(record)
    _check_ways(record, about, steps, exact)
    words = shlex.join(["-m", program, *arguments] if module else [program, *arguments])

    def narrow(steps: int) -> str:
        again = f"ptools repro --record {record} --force --exact --steps {steps} {words}"
        return f"record each operation, where it was recorded: {again}"

    job = Job("", until=about.until, steps=about.steps, surroundings=True)
    with ExitStack() as stack:
        session = _session(program, arguments, module, runner, say, stack)
        trace = _run(session, replace(job, numbers=tolerance is not None))
        deque(trace.events(), maxlen=0)
        here = {**_named(program, arguments, module), **trace.end.environment}
        found = beside((Trace(packed), trace), (about.environment, here), tolerance, narrow)
        notes = session.notes()
    end, run = trace.end, session.runs[0]
    return ReproReport(
        program=program,
        verdict=found.verdict,
        runs=(run,),
        notes=(*notes, *end.notes),
        watched=end.watched,
        ranks=1,
        steps=end.steps,
        beats=found.beats,
        operations=end.operations,
        nbytes=end.nbytes,
        exit_code=PARTS if found.verdict else 0 if end.stopped else run.ended.code,
        errors=found.errors,
        record=str(record),
        surroundings=found.surroundings,
    )


def _session(
    program: str,
    arguments: Sequence[str],
    module: bool,
    runner: Runner | None,
    say: Say,
    stack: ExitStack,
) -> Session:
    (script.check_module if module else script.check_script)(program)
    words = ["module" if module else "script", program, *arguments]
    return Session(words, None, runner or Processes("ptools.repro.child"), say, stack)


def _run(session: Session, job: Job) -> Trace:
    """One run, as the program is."""
    traces = session.run(PLAIN, job)
    if not traces:
        raise PtoolsError("the program did not start", hint="run it without ptools first")
    return traces[min(traces)]


def _check(trace: Trace, code: int) -> None:
    """Refuse what is no record."""
    if not trace.end.ended:
        raise PtoolsError("the program was killed: nothing is recorded", hint="record it again")
    if not trace.end.watched:
        raise PtoolsError(
            "this program did not import torch: nothing is recorded",
            hint="give the script that trains; others that it starts are not recorded",
        )
    if not trace.end.operations:
        ends = f"; it ends with exit code {code}" if code else ""
        raise PtoolsError(
            f"this program computed nothing with torch: nothing is recorded{ends}",
            hint="run it without ptools first",
        )


def _check_ways(record: str | Path, about: About, steps: int | None, exact: bool) -> None:
    """Refuse what would be recorded in another way than the record."""
    if steps is not None and steps != about.steps:
        was = f"with --steps {about.steps}" if about.steps else "without --steps"
        raise UsageError(f"{record} was recorded {was}", hint="leave --steps out: it is taken over")
    if exact and about.until != ALWAYS:
        raise UsageError(
            f"{record} was recorded without --exact", hint="record it with --exact, or leave it out"
        )


def _named(program: str, arguments: Sequence[str], module: bool) -> dict[str, str]:
    """What a record is of, wherever that lies."""
    name = program if module else Path(program).name
    told = {"program": name, "arguments": shlex.join(arguments)}
    return {**told, **({} if module else commit_of(program))}


def _lines(trace: Trace) -> Iterator[str]:
    """The lines of a trace; the last end, with what child processes took in, is written anew."""
    yield from (line for line in trace.lines() if not line.startswith('{"end"'))
    suspects = tuple(one.to_dict() for one in trace.suspects())
    yield json.dumps({"end": asdict(replace(trace.end, suspects=suspects))}) + "\n"
