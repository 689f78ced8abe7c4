"""Find the operation at which two ways to run a program part, and what makes them part."""

from __future__ import annotations

from dataclasses import replace

from ptools.repro.compare import Compared, compare
from ptools.repro.job import FIRST, Job
from ptools.repro.session import PLAIN, Session, Traces, Way
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
        self.facts: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Optimizer steps that were completed before."""
        return next(one.step for one in (self.parting.a, self.parting.b) if one is not None)

    def verdict(self, ranks: int) -> Verdict:
        """The verdict, of `ranks` processes."""
        verdict = judge(self.parting, (self.traces[0].end, self.traces[1].end))
        return replace(
            verdict,
            causes=self.causes,
            facts=(*verdict.facts, *self.facts),
            rank=self.rank if ranks > 1 else None,
        )


def first_parting(first: Traces, second: Traces) -> Found | None:
    """Of all ranks' runs, the earliest parting."""
    found = []
    for rank in sorted(first.keys() & second.keys()):
        compared = compare(first[rank], second[rank])
        if compared.parting is not None:
            found.append(Found(rank, compared, (first[rank], second[rank])))
    return min(found, key=lambda one: (one.parting.beats, one.rank), default=None)


def try_other_hashes(session: Session, first: Traces, job: Job) -> tuple[Found | None, Way]:
    """Begin with more hash seeds: two of them may give a small set the same order."""
    way = PLAIN
    session.say("the same; now the beginning under more hash seeds")
    for seed in _HASH_SEEDS:
        way = Way(("hash",), seed)
        found = first_parting(first, session.run(way, replace(job, stop=FIRST)))
        if found is not None:
            return found, way
    return None, way


def follow(session: Session, found: Found, way: Way, job: Job) -> Found:
    """Find the operation at which the runs part, and what makes them part."""
    until = found.parting.beats + 1
    job = replace(job, until=min(job.until, until), stop=until)
    plain = None
    if not found.parting.is_located and until > job.until:
        job = replace(job, start=found.parting.synced, until=until)
        session.say(f"the runs part at step {found.step}: running both again, traced")
        plain, again = session.run(PLAIN, job), session.run(way, job)
        located = first_parting(plain, again)
        if located is None:
            found.facts = ("it did not show again, when each operation was looked at",)
            return found
        found = located
    found.causes = _causes(session, found, way, job, plain)
    return found


def _causes(
    session: Session, found: Found, way: Way, job: Job, plain: Traces | None
) -> tuple[str, ...]:
    """The perturbations without which the runs do not part."""
    if not way.perturbed:
        return ()
    session.say("running it again, to see what makes the runs part")
    plain = plain or session.run(PLAIN, job)
    for tried in (PLAIN, *map(way.only, way.perturbed)):
        again = first_parting(plain, session.run(tried, job))
        if again is not None and again.parting.beats <= found.parting.beats:
            return tried.perturbed
    return way.perturbed
