"""Several ranks: which of them parts from its twin first, and whether they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ptools.console import counted
from ptools.repro.compare import Parting
from ptools.repro.events import ADDED, OUTSIDE, REPLICAS, Event, Value
from ptools.repro.trace import Trace
from ptools.repro.verdict import Verdict

Traces = Mapping[int, Trace]

_FEW = 2  # batches that may be equal by chance
_ADVICE = {
    ADDED: "wrap the model in DistributedDataParallel when all its modules are in place",
    OUTSIDE: "make it part of the model that DistributedDataParallel wraps, or give all ranks the "
    "same start and all-reduce its gradient",
    "": "look for what one rank does alone: a step, a load, a change in place, a learning rate",
}


def order(parting: Parting, rank: int) -> tuple[bool, int, int, int]:
    """Sorts the first partings of all ranks: what makes the others part comes first.

    Whoever reads what a collective brought parts as a consequence, however early: some other rank
    has sent it. Of causes the one with fewest beats before it counts, then with fewest events.
    """
    return follows(parting), parting.beats, parting.index, rank


def follows(parting: Parting) -> bool:
    """Whether the difference came from another rank."""
    values = parting.values()
    return values is not None and values[0].name.startswith("received ")


def is_own(parting: Parting, rank: int, first: Traces, second: Traces) -> bool:
    """Whether a rank parted by itself: a run that was ended from outside ends anywhere."""
    if parting.a is not None and parting.b is not None:
        return True
    over, twin = (first, second) if parting.a is None else (second, first)
    others = [trace.end for number, trace in over.items() if number != rank]
    if any(end.stopped for end in others):
        return False
    killed = not over[rank].end.ended
    return not (
        killed and others and (any(end.ended for end in others) or not twin[rank].end.ended)
    )


def disagreement(traces: Traces) -> Verdict | None:
    """Where ranks that DistributedDataParallel keeps alike hold other parameters in one run."""
    found = [
        one
        for rank in sorted(traces.keys() - {0})
        if 0 in traces and (one := _apart(traces[0], traces[rank], rank)) is not None
    ]
    return min(found, key=lambda one: one.step, default=None)


def same_batches(traces: Traces) -> list[str]:
    """A sentence if ranks that learn together learnt from the same batches."""
    if 0 not in traces or not any(one.kind == REPLICAS for one in traces[0].events()):
        return []
    ours = _trained_on(traces[0])
    same = [rank for rank in sorted(traces.keys() - {0}) if _trained_on(traces[rank]) == ours]
    if len(ours) < _FEW or not same:
        return []
    return [f"{_ranks(0, *same)} trained on the same batches: use a DistributedSampler"]


def _trained_on(trace: Trace) -> list[tuple[Value, ...]]:
    """Of each backward the batch before it."""
    batches: list[tuple[Value, ...]] = []
    last: tuple[Value, ...] = ()
    for event in trace.events():
        if event.kind == "batch":
            last = event.values
        elif event.kind == "loss" and last:
            batches.append(last)
    return batches


@dataclass(frozen=True)
class _Held:
    """The parameters that a rank held, and the state that was told with them."""

    event: Event
    state: Event | None


def _held(trace: Trace) -> Iterator[_Held]:
    state = None
    for event in trace.events():
        if event.kind == "state":
            state = event
        elif event.kind == REPLICAS:
            yield _Held(event, state)


def _apart(trace: Trace, other: Trace, rank: int) -> Verdict | None:
    equal = None
    for mine, its in zip(_held(trace), _held(other), strict=False):
        names = _differing(mine.event, its.event)
        if names:
            first, more = names[0], len(names) - 1
            what = f"{first}{f' and {more} more' if more else ''}"
            when = counted(mine.event.step, "step")
            before = () if equal is None else (f"they were equal after {counted(equal, 'step')}",)
            place = trace.places.get(mine.event.place)
            return Verdict(
                "ranks",
                f"{_ranks(0, rank)} hold other parameters after {when}: {what}",
                mine.event.step,
                value=first,
                places=(("stepped at", place),) if place else (),
                facts=(*before, *(_steps(trace, other, rank) or _reasons(mine, its, rank))),
                advice=next(text for end, text in _ADVICE.items() if first.endswith(end)),
            )
        equal = mine.event.step
    return None


def _differing(mine: Event, its: Event) -> list[str]:
    """Those first that DDP does not hold: the others may follow."""
    theirs = {value.name: value for value in its.values}
    found = [one.name for one in mine.values if theirs.get(one.name, one).digest != one.digest]
    return sorted(found, key=lambda name: not name.endswith((ADDED, OUTSIDE)))


def _reasons(mine: _Held, its: _Held, rank: int) -> Iterator[str]:
    """What else was not the same at that step."""
    if mine.state is None or its.state is None:
        return
    theirs = {value.name: value for value in its.state.values}
    pairs = [(one, theirs[one.name]) for one in mine.state.values if one.name in theirs]
    for one, other in pairs:
        if one.name.startswith("learning rate") and one != other:
            yield f"{one.name} is {one.what} on rank 0 and {other.what} on rank {rank}"
    if any(one.name.startswith("gradient") and one != other for one, other in pairs):
        yield "their gradients differ too: they were not averaged, or changed after that"


def _steps(trace: Trace, other: Trace, rank: int) -> list[str]:
    """Whether one did more of them, known when both are read to their ends."""
    for one in (trace, other):
        for _ in one.events():
            pass
    if trace.end.steps == other.end.steps or not (trace.end.ended and other.end.ended):
        return []
    ours = counted(trace.end.steps, "step")
    return [f"rank 0 made {ours} in all, rank {rank} made {other.end.steps:,}"]


def _ranks(*ranks: int) -> str:
    *first, last = map(str, ranks)
    return f"ranks {', '.join(first)} and {last}"
