"""Whether a resumed run goes on as the uninterrupted one, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ptools.console import counted
from ptools.program.places import Place
from ptools.repro.events import Event
from ptools.repro.resume import state
from ptools.repro.resume.data import Lost
from ptools.repro.resume.lost import Start, counter_facts, generator_notes, kept_lost, lost
from ptools.repro.resume.record import differences, is_point, part, values_of

_TOLD = {"loss": "the loss", "output": "a model's output", "batch": "a batch"}
_AT_FIRST = "they are those that run A began with"
_ANEW = Lost(
    "everything: it began anew",
    ("all is as run A began",),
    "have the script load its checkpoint: --resume-args takes the arguments for that",
)
_UNKNOWN = Lost(
    "something that is not known here",
    ("all that is known to make the future was the same where it goes on",),
    "look at the line below for what else it depends on",
)


@dataclass(frozen=True)
class Judgement:
    """See `ResumeReport`."""

    start: int | None = None
    steps: int = 0
    parts: str = ""
    where: Place | None = None
    lost: tuple[Lost, ...] = ()
    facts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def judge(start: Start, killed_at: int) -> Judgement:
    """What became of a resumed run that made a step."""
    step, kept = start.mine.step, kept_lost(start)
    if any(category == state.PARAMETER for category, _ in kept):
        return _of_parameters(start, [one for _, one in kept])
    if step == 0:
        first = kept_lost(replace(start, at=start.a.points[0]))
        anew = _ANEW if not first else _parameters((_AT_FIRST,))
        return Judgement(start=0, lost=(anew,))
    count, parted = part(
        start.a.events[start.at + 1 :],
        start.b.events[start.first + 1 :],
        (start.a.end.stopped, start.b.end.stopped),
        {category for category, _ in kept},
    )
    found = lost(start, parted is not None)
    notes = []
    if step < killed_at:
        steps = counted(killed_at - step, "step")
        notes.append(f"the checkpoint that it resumes from was made {steps} before the kill")
    if parted is None:
        notes += generator_notes(start, found)
    done = start.a.events[min(start.at + count, len(start.a.events) - 1)].step - step
    judgement = Judgement(start=step, steps=done, lost=tuple(found), notes=tuple(notes))
    if parted is None:
        return judgement
    return replace(
        judgement,
        parts=_told(start, *parted),
        where=_place(start, *parted),
        lost=judgement.lost or (() if start.b.error else (_UNKNOWN,)),
        facts=tuple(counter_facts(start)),
    )


def _of_parameters(start: Start, kept: Sequence[Lost]) -> Judgement:
    """Some parameters are as at no step, or all."""
    points = [start.a.events[at] for at in start.a.points]
    moving = {
        one.name for point in points[1:] for one in differences(points[0], point, state.PARAMETER)
    }
    wrong = {one.name for one in start.differ(state.PARAMETER)}
    if wrong >= moving:
        return Judgement(lost=(_parameters(("they are as at no step of run A",)),))
    many = len(values_of(start.mine, (state.PARAMETER,)))
    fact = f"{many - len(wrong)} of {many} are as after step {start.mine.step:,}, and others not"
    first = replace(kept[0], facts=(fact, *kept[0].facts))
    return Judgement(start=start.mine.step, lost=(first, *kept[1:]))


def _parameters(facts: tuple[str, ...]) -> Lost:
    return Lost(
        "parameters",
        facts,
        "save model.state_dict(), and load it with load_state_dict before the first step",
    )


def _told(start: Start, mine: Event | None, its: Event | None) -> str:
    """The first difference."""
    if its is None or mine is None:
        return f"the resumed run failed: {start.b.error}" if its is None else "run A was over"
    step = f"at step {mine.step:,}"
    if _is_end(its) and not _is_end(mine):
        return f"the resumed run is over {step}, and run A goes on"
    if _is_end(mine) and not _is_end(its):
        return f"run A is over {step}, and the resumed run goes on"
    if mine.kind != its.kind:
        return f"{step} run A has {_name(mine)} and the resumed run {_name(its)}"
    if not is_point(mine):
        return f"{_name(mine)} differs {step}"
    found = [one for category in state.KEPT for one in differences(mine, its, category)]
    return f"{found[0].told()}, {step}" if found else f"a model's input differs {step}"


def _name(event: Event) -> str:
    return _TOLD.get(event.kind, "a forward")


def _is_end(event: Event) -> bool:
    return is_point(event) and event.name == state.END


def _place(start: Start, mine: Event | None, its: Event | None) -> Place | None:
    if mine is not None and not _is_end(mine):
        return start.a.place(mine)
    return None if its is None else start.b.place(its)
