"""A birth as a finding: the sentence, the lines in the order of reading, the facts."""

from __future__ import annotations

from collections.abc import Iterator

from ptools.debug.findings import Finding
from ptools.debug.nan.advice import advice_for
from ptools.debug.nan.births import Birth
from ptools.files import shown_path
from ptools.program.modules import Modules
from ptools.program.places import Place

_PARENTS = 2
_WORDS = {"nan": "NaN", "inf": "infinity"}


def finding_of(birth: Birth, modules: Modules, reached: str, late: bool) -> Finding:
    """What to tell of a birth.

    Args:
        birth: of the number that is not finite.
        modules: know the names.
        reached: a sentence that says where it was noticed.
        late: whether the tracing began in the midst of the program.
    """
    place = birth.spot.place(modules)
    role = "made" if birth.source in ("operation", "memory") else "read"
    places = [(role, place)] if place else []
    places += [("born", one) for one in _born(birth, modules)]
    for role, spot in ("forward", birth.forward), ("backward", birth.backward):
        if spot is not None and (line := spot.place(modules)) is not None:
            places.append((role, line))
    return Finding(
        kind="nan-before" if birth.source == "before" and late else birth.kind,
        summary=_summary(birth, place),
        places=tuple(places),
        facts=(*dict.fromkeys(birth.facts), *_facts(birth, modules), reached),
        advice=advice_for(birth),
        op=birth.op,
        tensors=birth.tensors,
    )


def told_in_passing(birth: Birth, modules: Modules) -> str:
    """A NaN that did no harm."""
    place = birth.spot.place(modules)
    where = f"{shown_path(place.file)}:{place.line}" if place else "a line that is not known"
    return f"{birth.op} made a NaN at {where}, which reached no loss, gradient or parameter"


def _summary(birth: Birth, place: Place | None) -> str:
    word = _WORDS[birth.kind]
    within = f" in {place.module}" if place and place.module else ""
    match birth.source:
        case "operation" if birth.optimizer:
            return f"the optimizer's step made {word} ({birth.op})"
        case "operation" if birth.node:
            return f"the backward of {_forward_of(birth.node)} made {word} ({birth.op}){within}"
        case "operation":
            came = any(parent.source == "batch" for parent in birth.parents)
            of_what = " of an infinity in a batch of data" if came else ""
            return f"{birth.op} made {word}{of_what}{within}"
        case "memory":
            return f"{word} was in memory that {birth.op} took and nothing was written to"
        case "batch":
            return f"{word} came in with a batch of data"
        case "before":
            return f"{birth.held_by} held {word} before the tracing began"
    return f"{word} came from outside torch's operations, in data or constants"


def _forward_of(node: str) -> str:
    return node.rstrip("0123456789").removesuffix("Backward") or node


def _born(birth: Birth, modules: Modules) -> Iterator[Place]:
    """The lines where an operation bore the infinities behind a NaN."""
    for parent in birth.parents[:_PARENTS]:
        same_call = parent.spot.inner == birth.spot.inner and not birth.node
        place = parent.spot.place(modules)
        if parent.source == "operation" and parent.kind == "inf" and place and not same_call:
            yield place


def _facts(birth: Birth, modules: Modules) -> Iterator[str]:
    if birth.node:
        yield f"in the backward, node {birth.node}"
    for parent in birth.parents[:_PARENTS]:
        place = parent.spot.place(modules)
        at = f" at {shown_path(place.file)}:{place.line}" if place else ""
        if parent.kind == "nan":
            how = "made" if parent.source == "operation" else "read"
            yield f"the forward kept a NaN that {parent.op} {how}{at}, masked later"
        elif parent.source == "operation":
            phase = f" in the backward, node {parent.node}" if parent.node else ""
            yield f"{parent.op} bore the infinity behind it{at}{phase}"
        elif parent.source == "batch":
            yield f"the infinity behind it came with a batch of data, first read{at}"
            yield from parent.facts
        else:
            yield f"the infinity behind it came from outside, first read{at}"
