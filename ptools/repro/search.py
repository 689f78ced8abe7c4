"""Find the operation at which two ways to run a program part, and what makes them part."""

from __future__ import annotations

from dataclasses import replace

from ptools.repro.compare import Compared
from ptools.repro.conclude import conclude
from ptools.repro.fingerprints.tolerance import compare_by
from ptools.repro.job import FIRST, Job
from ptools.repro.ranks.ranks import follows, is_own, order
from ptools.repro.session import PLAIN, Session, Traces, Way
from ptools.repro.suspects.culprit import likely
from ptools.repro.trace import Trace
from ptools.repro.verdict import Verdict, judge

_HASH_SEEDS = (3, 4, 5)


class Found:
    """A parting of one rank's runs, and the job that shows it."""

    def __init__(self, rank: int, compared: Compared, traces: tuple[Trace, Trace]) -> None:
        assert compared.parting is not None
        self.rank = rank
        self.parting = compared.parting
        self.traces = traces
        self.causes: tuple[str, ...] = ()
        self.facts: tuple[str, ...] = compared.facts

    @property
    def step(self) -> int:
        """Optimizer steps that were completed before."""
        return next(one.step for one in (self.parting.a, self.parting.b) if one is not None)

    def lists_otherwise(self) -> bool:
        """Whether files were listed in another order before."""
        first, second = self.traces
        found = likely(first.suspects(), second.suspects(), self.parting.index)
        return any(one.kind == "listing" for one in found)

    def verdict(self, ranks: int) -> Verdict:
        """The verdict, of `ranks` processes."""
        first, second = self.traces
        verdict = judge(self.parting, (first.end, second.end))
        suspects = first.suspects(), second.suspects()
        verdict = conclude(verdict, self.causes, suspects, self.parting.index)
        return replace(
            verdict,
            facts=(*verdict.facts, *self.facts),
            rank=self.rank if ranks > 1 else None,
        )


def first_parting(first: Traces, second: Traces, tolerance: float | None = None) -> Found | None:
    """Of all ranks' runs, the earliest parting, by more than a tolerance if there is one."""
    found = []
    for rank in sorted(first.keys() & second.keys()):
        compared = compare_by(tolerance, first[rank], second[rank])
        if compared.parting is not None:
            found.append(Found(rank, compared, (first[rank], second[rank])))
    own = [one for one in found if is_own(one.parting, one.rank, first, second)]
    if not own:
        return None
    earliest = min(own, key=lambda one: order(one.parting, one.rank))
    if not follows(earliest.parting):
        later = [one.rank for one in own if follows(one.parting)]
        earliest.facts += tuple(f"rank {rank} follows, through a collective" for rank in later)
    return earliest


def try_other_hashes(
    session: Session, first: Traces, job: Job, tolerance: float | None = None
) -> tuple[Found | None, Way]:
    """Begin with more hash seeds: two of them may give a small set the same order."""
    way = PLAIN
    session.say("the same; now the beginning under more hash seeds")
    for seed in _HASH_SEEDS:
        way = Way(("hash",), seed)
        again = session.run(way, replace(job, stop=FIRST))
        found = first_parting(first, again, tolerance)
        if found is not None:
            return found, way
    return None, way


def follow(session: Session, found: Found, way: Way, job: Job, plain: Traces) -> Found:
    """Find the operation at which the runs part, and what makes them part.

    Args:
        plain: the unperturbed run by the same job.
    """
    tolerance, until = found.parting.tolerance, found.parting.beats + 1
    job = replace(job, stop=None if found.parting.is_of_length else until, rank=found.rank)
    if not (found.parting.is_located or found.parting.is_of_length) and until > job.until:
        job = replace(job, start=found.parting.synced, until=until)
        session.say(f"the runs part at step {found.step}: running both again, traced")
        plain = session.run(PLAIN, job)
        located = first_parting(plain, session.run(way, job), tolerance)
        if located is None:
            found.facts = ("it did not show again, when each operation was looked at",)
            return found
        found = located
    if way.perturbed:
        _find_causes(session, found, way, job, plain)
    return found


def _find_causes(session: Session, found: Found, way: Way, job: Job, plain: Traces) -> None:
    """Find the perturbations without which the runs do not part."""
    session.say("running it again, to see what makes the runs part")
    single = [way.only(name) for name in way.perturbed]
    if found.lists_otherwise():
        single.sort(key=lambda one: one.perturbed != ("fs",))
    for tried in (PLAIN, *single, *([way] if single[1:] else [])):
        again = first_parting(plain, session.run(tried, job), found.parting.tolerance)
        if again is None:
            continue
        # Lengths that are another each time tell nothing by where they part.
        if found.parting.is_of_length or again.parting.beats <= found.parting.beats:
            found.causes = tried.perturbed
            return
    found.facts = ("it does not show each time, so that its cause could not be found by trying",)
