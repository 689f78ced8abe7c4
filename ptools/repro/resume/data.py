"""Whether a resumed run goes on with the data that would have come."""

from __future__ import annotations

from dataclasses import dataclass

from ptools.repro.events import Event
from ptools.repro.resume import state
from ptools.repro.resume.record import Record, differences, values_of


@dataclass(frozen=True)
class Lost:
    """A state that was not restored.

    Args:
        what: it is.
        facts: what of it differs.
        save: what to save and load.
        drawn: it is values that were drawn at random for the same samples.
    """

    what: str
    facts: tuple[str, ...]
    save: str
    drawn: bool = False


_POSITION = (
    "save the epoch and the position in it, and skip as many batches (torchdata's "
    "StatefulDataLoader does both), or save at the ends of epochs only"
)
_ORDER = (
    "shuffle by the epoch's number (sampler.set_epoch, or a torch.Generator seeded with it) and "
    "skip the batches that were done, or use torchdata's StatefulDataLoader"
)
_COUNTER = "save when the step was made, with the number of steps that are complete"


def data_lost(a: Record, at: int, b: Record, first: int) -> list[Lost]:
    """What is wrong with the first inputs of the resumed run."""
    mine, its = a.events[at], b.events[first]
    if not differences(mine, its, state.INPUT):
        return []
    ours, theirs = a.batch_before(at), b.batch_before(first)
    if ours and theirs and ours.samples and ours.samples == theirs.samples:
        fact = "the same samples have other values: they are drawn at random"
        return [Lost("values in the batch", (fact,), "save the generator they come from", True)]
    there = _same_in(a, at, its, theirs)
    if there is None:
        return [Lost("the order of the samples", _samples(ours, theirs), _ORDER)]
    step = a.events[there].step
    if not theirs and _generators_apart(mine, its) - _generators_apart(a.events[there], its):
        fact = f"they are those of step {step}: the generator is as it was there"
        return [Lost("inputs that are drawn at random", (fact,), "save the generator", True)]
    if there > at:
        fact = f"it goes on with the data of step {step}: what lies between was left out"
        return [Lost("the position in the data", (fact,), _COUNTER)]
    fact = f"it goes on with the data of step {step}, which run A has been through"
    if there == a.points[0] and theirs and [*theirs.samples] != sorted(theirs.samples):
        return [Lost("the order of the samples", (fact,), _ORDER)]
    return [Lost("the position in the data", (fact,), _POSITION)]


def _generators_apart(mine: Event, its: Event) -> set[str]:
    return {one.name for one in differences(mine, its, state.GENERATOR)}


def _same_in(a: Record, at: int, its: Event, batch: Event | None) -> int | None:
    """The point of run A that was given what the resumed run begins with.

    The first of all if it was one, since that is where one begins anew, else the nearest.
    """
    given = values_of(its, (state.INPUT,))
    found = [
        one
        for one in a.points
        if one != at
        and (
            values_of(a.events[one], (state.INPUT,)) == given
            or _has_samples(a.batch_before(one), batch)
        )
    ]
    first = found[:1] if found[:1] == a.points[:1] else []
    return min(first or found, key=lambda one: abs(one - at), default=None)


def _has_samples(mine: Event | None, its: Event | None) -> bool:
    return bool(mine and its and its.samples and mine.samples == its.samples)


def _samples(mine: Event | None, its: Event | None) -> tuple[str, ...]:
    if not (mine and its and mine.samples and its.samples):
        return ("no step of run A was given what it begins with",)
    return (f"run A goes on with samples {_few(mine)}, the resumed run with {_few(its)}",)


def _few(batch: Event) -> str:
    shown = ", ".join(map(str, batch.samples[:4]))
    return f"{shown}, ..." if len(batch.samples) > 4 else shown
