"""What came of a debug run."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ptools.debug.findings import Finding, Table, of_rank
from ptools.debug.job import FOUND, Outcome
from ptools.program.process import Ended


@dataclass(frozen=True)
class Pass:
    """One run of the program: in which mode, how long, how many steps, and how it ended."""

    mode: str
    seconds: float
    steps: int
    ended: Ended

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "mode": self.mode,
            "seconds": self.seconds,
            "steps": self.steps,
            "exit_code": self.ended.code,
            "interrupted": self.ended.interrupted,
        }


@dataclass(frozen=True)
class DebugReport:
    """The findings of all runs of a program; `notes` say what a reader should know of them.

    `steps` and `ticks` are the optimizer steps and backward calls that were watched, `watched`
    tells whether the program imported torch at all, and `complete` whether it ended as programs do.
    `exit_code` is 3 if something was found, else the program's own.
    """

    program: str
    mode: str
    seed: int
    ranks: int
    passes: tuple[Pass, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    watched: bool
    complete: bool
    steps: int
    ticks: int
    exit_code: int

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        tables = [
            {
                "title": table.title,
                "rows": [
                    dict(zip(table.columns, map(_finite, row), strict=True)) for row in table.rows
                ],
            }
            for table in self.tables
        ]
        passes = [one.to_dict() for one in self.passes]
        return {**asdict(self), "passes": passes, "tables": tables}


def make_report(
    program: str,
    mode: str,
    seed: int,
    passes: Sequence[Pass],
    outcomes: Sequence[Outcome],
    notes: Iterable[str],
) -> DebugReport:
    """What came of the passes: `outcomes` are those of the one that counts."""
    findings = _of_all_ranks(outcomes)
    told = [note for outcome in outcomes for note in outcome.notes]
    return DebugReport(
        program=program,
        mode=mode,
        seed=seed,
        ranks=len(outcomes),
        passes=tuple(passes),
        findings=findings,
        notes=tuple(dict.fromkeys([*told, *_ends(passes[0], outcomes), *notes])),
        tables=tuple(_tables(outcomes)),
        watched=any(outcome.watched for outcome in outcomes),
        complete=all(outcome.ended for outcome in outcomes),
        steps=max((outcome.steps for outcome in outcomes), default=0),
        ticks=max((outcome.ticks for outcome in outcomes), default=0),
        exit_code=_exit_code(passes, bool(findings)),
    )


def _tables(outcomes: Sequence[Outcome]) -> Iterator[Table]:
    for outcome in outcomes:
        for table in outcome.tables:
            title = f"{table.title} (rank {outcome.rank})" if len(outcomes) > 1 else table.title
            yield replace(table, title=title)


def _of_all_ranks(outcomes: Sequence[Outcome]) -> tuple[Finding, ...]:
    """Each once, the one that was made first at the head; of one beat, the one that made it."""
    if len(outcomes) == 1:
        return outcomes[0].findings
    found = [of_rank(one, outcome.rank) for outcome in outcomes for one in outcome.findings]
    found.sort(key=lambda one: (one.tick or 0, _is_received(one)))
    alike: dict[object, list[Finding]] = {}
    passed_on = []
    for one in found:
        key = one.kind, *((role, place.file, place.line) for role, place in one.places)
        if key not in alike and _came_from(found[0], one):
            passed_on.append(one)
        else:
            alike.setdefault(key, []).append(one)
    merged = [_merged(same) for same in alike.values()]
    if passed_on:
        fact = f"it came to rank {_ranks(passed_on)} too"
        merged[0] = replace(merged[0], facts=(*merged[0].facts, fact))
    return tuple(merged)


def _came_from(first: Finding, one: Finding) -> bool:
    """Whether a rank may have it from another: DDP averages the gradients of all."""
    is_soon = (one.tick or 0) - (first.tick or 0) <= 1
    return one.rank != first.rank and is_soon and _is_received(one)


def _is_received(finding: Finding) -> bool:
    """Whether no operation of this rank made it: another's may have."""
    return finding.place("made") is None and finding.kind in ("nan", "inf", "nan-before")


def _merged(same: list[Finding]) -> Finding:
    others = _ranks([one for one in same if one.rank != same[0].rank])
    if not others:
        return same[0]
    return replace(same[0], facts=(*same[0].facts, f"the same on rank {others}"))


def _ranks(findings: Sequence[Finding]) -> str:
    return ", ".join(map(str, sorted({one.rank for one in findings if one.rank is not None})))


def _ends(first: Pass, outcomes: Sequence[Outcome]) -> list[str]:
    """What to know of a program that did not end as programs do."""
    ended = first.ended
    if ended.signal is not None and not ended.interrupted:
        name = signal.Signals(ended.signal).name
        why = ", as Linux does when memory is full" if name == "SIGKILL" else ""
        return [f"the program was killed by {name}{why}: what it told before is shown"]
    if not ended.interrupted and not any(outcome.ended for outcome in outcomes):
        return ["the program ended past Python (os._exit, os.exec): what came last may be missing"]
    return []


def _exit_code(passes: Sequence[Pass], found: bool) -> int:
    stopped = next((one.ended for one in passes if one.ended.interrupted), None)
    if stopped is not None and stopped.code:
        return stopped.code
    return FOUND if found else passes[0].ended.code


def _finite(cell: str | int | float | None) -> str | int | float | None:
    """JSON knows no NaN."""
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
