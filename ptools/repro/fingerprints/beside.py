"""Two runs that are recorded already: neither can be run again up to where they part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from ptools.repro.compare import Parting
from ptools.repro.events import BEATS
from ptools.repro.fingerprints.surroundings import computes_alike, differing
from ptools.repro.fingerprints.tolerance import Errors, check_tolerance, compare_by
from ptools.repro.search import Found
from ptools.repro.trace import Trace
from ptools.repro.verdict import Verdict

_NUMERICAL = {"operation", "tolerance", "state"}


@dataclass(frozen=True)
class Beside:
    """What came of it.

    Args:
        verdict: None: they are the same, within the tolerance if one was given.
        beats: batches, losses, outputs and states that are.
        errors: if a tolerance was given.
        surroundings: what is not the same around the runs: by name, there and here.
    """

    verdict: Verdict | None
    beats: int
    errors: Errors | None
    surroundings: Mapping[str, tuple[str, str]]


def beside(
    traces: tuple[Trace, Trace],
    surroundings: tuple[Mapping[str, str], Mapping[str, str]],
    tolerance: float | None,
    narrow: Callable[[int], str],
) -> Beside:
    """Compare two recorded runs.

    Args:
        tolerance: the relative error that floating-point numbers may have.
        narrow: says how to find the operation, where operations were not recorded; takes the
            number of steps in which the runs part.

    Raises:
        UsageError: it is no tolerance.
    """
    check_tolerance(tolerance)
    compared = compare_by(tolerance, *traces, computes_alike(*surroundings))
    others = differing(*surroundings)
    verdict = None
    if compared.parting is not None:
        found = Found(0, compared, traces)
        verdict = _advised(found.verdict(1), others)
        if not found.parting.is_located:
            facts = (*verdict.facts, _last_equal(found.parting, traces[0]))
            advice = narrow(found.step + 1)
            verdict = replace(verdict, facts=facts, advice=advice)
    return Beside(verdict, compared.beats, compared.errors, others)


def _advised(verdict: Verdict, others: Mapping[str, tuple[str, str]]) -> Verdict:
    """With what is not the same around the runs."""
    facts = tuple(f"not the same: {name}, {a} and {b}" for name, (a, b) in others.items())
    advice = verdict.advice
    if facts and verdict.kind in _NUMERICAL:
        advice = "make these the same, or allow for small errors with a tolerance, as 1e-5"
    return replace(verdict, facts=(*verdict.facts, *facts), advice=advice)


def _last_equal(parting: Parting, first: Trace) -> str:
    """What is known where operations were not recorded."""
    if not parting.synced:
        return "operations were not recorded there, and no state before it was"
    beats = (one for one in first.events() if one.kind in BEATS)
    last = next(islice(beats, parting.synced - 1, None))
    return f"operations were not recorded there; the state was the same after step {last.step:,}"
