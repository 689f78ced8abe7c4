"""Why two runs part: the class of the first difference, in sentences."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

from ptools.console import counted
from ptools.program.places import Place, place_from
from ptools.repro.compare import Parting
from ptools.repro.events import END, PARAMETERS, End, Event, Value
from ptools.repro.fingerprints.apart import errors_of, subject_of


@dataclass(frozen=True)
class Verdict:
    """The first difference between two runs.

    Args:
        kind: what made it: `random` (a generator that was not seeded), `outside` (a value from
            outside torch), `files` or `hash` (an order), `time`, `threads`, `memory` (that nothing
            was written to), `operation`, `control-flow`, `length`, `crash`, `collective` (another
            rank), `ranks` (they should agree); or, if no more is known, `batch` or `state`; beyond
            a tolerance `tolerance`.
        summary: what differs.
        step: optimizer steps that were completed before.
        rank: of the process, if there are several.
        op: the operation.
        value: what of it differs.
        places: lines by their role, in the order in which a person wants to read them.
        causes: the perturbations without which the runs do not part.
        facts: sentences for the reader.
        advice: what to do.
    """

    kind: str
    summary: str
    step: int
    op: str = ""
    value: str = ""
    places: tuple[tuple[str, Place], ...] = ()
    causes: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    advice: str = ""
    rank: int | None = None

    def __str__(self) -> str:
        from ptools.repro.render import as_text

        return as_text(self)

    @property
    def where(self) -> Place | None:
        """The line to look at first."""
        return self.places[0][1] if self.places else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


_ADVICE = {
    "random": "seed it before this line: ptools.seed_everything(0), or run it with ptools seed",
    "outside": "make what comes from outside torch the same: seed NumPy and Python, fix the file",
    "argument": "find what sets this number: an option, a file, the clock, a draw outside torch",
    "hash": "sort what comes out of sets, and of whatever hash() decides",
    "fs": "sort what os.listdir, os.scandir and glob yield",
    "time": "take no number from the clock",
    "threads": "set the number of threads: sums are added in another order",
    "operation": "run with torch.use_deterministic_algorithms(True), as ptools seed does",
    "collective": "look at what the other ranks send: of three or more, sums may add up otherwise",
    "memory": "write to what torch.empty gives before it is read",
}


def judge(parting: Parting, ends: tuple[End, End]) -> Verdict:
    """The verdict on a parting, without its causes."""
    a, b = parting.a, parting.b
    if a is None or b is None:
        return _of_length(parting, ends)
    if (a.name == END) != (b.name == END):
        return _of_end(parting, a, b)
    values = parting.values()
    if values is None:
        return _of_control_flow(parting, a, b)
    of_values = _of_errors if parting.tolerance is not None and a.kind != "batch" else _of_values
    kind, summary, facts = of_values(a, b, *values)
    verdict = Verdict(
        kind,
        summary,
        a.step,
        a.name if a.kind == "op" else "",
        values[0].name,
        _places(parting, "backward of" if a.backward else "at"),
        facts=facts,
        advice=_ADVICE.get(values[0].name.partition(" ")[0], _ADVICE.get(kind, "")),
    )
    mine, other = parting.batch
    if mine is not None and other is not None and kind != "batch":
        verdict = replace(verdict, facts=verdict.facts + _batch_facts(mine, other))
    return verdict


def _of_values(a: Event, b: Event, mine: Value, other: Value) -> tuple[str, str, tuple[str, ...]]:
    """Kind, summary and facts."""
    role = mine.name.partition(" ")[0]
    differs = f": {mine.what} and {other.what}" if mine.what != other.what else ""
    if a.kind == "batch":
        return "batch", "the DataLoader brought another batch", _batch_facts(a, b)
    if a.kind == "enter" and a.name.startswith(PARAMETERS):
        order = "are in another order" if _are_permuted(a, b) else "are others"
        return "outside", f"{a.name} {order}", ()
    if a.kind == "enter":
        return "outside", f"other numbers come into torch{differs}", ()
    if a.kind != "op":
        return "state", f"{mine.name} differs{differs}", ()
    if role == "received":
        return "collective", f"{a.name} read other numbers, which came from other ranks", ()
    if role == "input":
        return "outside", f"{mine.name} of {a.name} was made or changed outside torch", ()
    if role == "argument":
        return "outside", f"{mine.name} of {a.name} is {mine.what} and {other.what}", ()
    if a.unwritten:
        return "memory", f"{a.name} read memory that nothing was written to", ()
    if a.generator != b.generator:
        return "random", f"{a.name} drew other numbers: its generator was in another state", ()
    return "operation", f"{a.name} made another {role} of the same inputs{differs}", ()


def _are_permuted(a: Event, b: Event) -> bool:
    return sorted(one[1:3] for one in a.values) == sorted(one[1:3] for one in b.values)


def _of_errors(a: Event, b: Event, mine: Value, other: Value) -> tuple[str, str, tuple[str, ...]]:
    """The same where small errors are tolerated: the bits may have differed before."""
    subject = subject_of(a, mine)
    errors = zip(a.values, errors_of(a, b) or (), strict=False)
    error = next((error for value, error in errors if value is mine), inf)
    if a.generator is not None and mine.name.startswith("output"):
        state = "another" if a.generator != b.generator else "the same"
        facts = (f"its generator was in {state} state; other devices draw other numbers",)
        return "random", f"{a.name} drew other numbers", facts
    if mine.what != other.what and len(mine.numbers) != 1:
        return "tolerance", f"{subject} is {mine.what} and {other.what}", ()
    if mine.numbers and error < inf:
        size = f"an error of {error:.1e}"
        is_input = mine.name.startswith("input")  # it may have grown over several operations
        where = f"has reached {a.name}" if is_input else f"in {subject}"
        return "tolerance", f"{size} {where}", ()
    if mine.numbers:
        return "tolerance", f"{subject} is NaN or infinite in one run only", ()
    return "tolerance", f"{subject} differs, which is compared bit for bit", ()


def _batch_facts(a: Event, b: Event) -> tuple[str, ...]:
    """The field and the sample that differ."""
    for mine, other in zip(a.values, b.values, strict=False):
        if mine == other:
            continue
        if mine.what != other.what:
            return (f"{mine.name} is {mine.what} in one run and {other.what} in the other",)
        pairs = enumerate(zip(mine.parts, other.parts, strict=False))
        wrong = [index for index, (one, two) in pairs if one != two]
        if not wrong:
            return (f"{mine.name} differs",)
        many = f"{len(wrong)} of {len(mine.parts)} samples" if len(wrong) > 1 else "one sample"
        first = f"{mine.name} differs in {many}, first in sample {wrong[0]}"
        if a.samples != b.samples:
            return (first, "the samples were drawn in another order")
        if wrong[0] < len(a.samples):
            first += f": number {a.samples[wrong[0]]} of the data set"
        return (first,)
    return ()


def _of_control_flow(parting: Parting, a: Event, b: Event) -> Verdict:
    places = _places(parting, "run A at")
    other = parting.places[1]
    if other is not None and other != parting.places[0]:
        places += (("run B at", other),)
    return Verdict(
        "control-flow",
        f"one run comes to {a.name}, the other to {b.name}",
        a.step,
        a.name,
        places=places,
    )


def _of_end(parting: Parting, a: Event, b: Event) -> Verdict:
    over, goes_on = ("A", b) if a.name == END else ("B", a)
    place = parting.places[over == "A"]
    return Verdict(
        "length",
        f"run {over} was over after {counted(a.step, 'step')}; the other went on with "
        f"{goes_on.name}",
        a.step,
        places=(("goes on at", place),) if place else (),
    )


def _of_length(parting: Parting, ends: tuple[End, End]) -> Verdict:
    goes_on = parting.a or parting.b
    assert goes_on is not None
    run, end = ("B", ends[1]) if parting.a else ("A", ends[0])
    place = parting.places[0] or parting.places[1]
    places = (("goes on at", place),) if place else ()
    kind, why = "length", "was over"
    if end.error:
        kind, why = "crash", f"failed: {end.error}"
        places = (*((("failed at", place_from(end.place)),) if end.place else ()), *places)
    summary = f"run {run} {why}; the other went on with {goes_on.name}"
    return Verdict(kind, summary, goes_on.step, places=places)


def _places(parting: Parting, role: str) -> tuple[tuple[str, Place], ...]:
    place = parting.places[0]
    return () if place is None else ((role, place),)
