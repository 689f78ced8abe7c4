"""The verdict with its cause: the perturbation, and the line that drew or read what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ptools.repro.suspects.culprit import differing, is_seeding, likely, sentence
from ptools.repro.suspects.notes import Suspect
from ptools.repro.suspects.sets import sets_in
from ptools.repro.verdict import Verdict

# What is perturbed, as a class of difference, and what to do.
_PERTURBED = {
    "hash": ("hash", "sort what comes out of sets, and use no hash() of text"),
    "fs": ("files", "sort what comes out of folders"),
    "time": ("time", "take no number from the clock"),
    "threads": ("threads", "set the number of threads: with another, sums add up otherwise"),
}
_ROLES = {
    "seed": "seeded at",
    "listing": "listed at",
    "entropy": "drawn at",
    "python": "drawn at",
    "numpy": "drawn at",
}
_BRANCHES = ("if ", "if(", "elif ", "while ", "while(", "assert ")
_DECIDED = {"control-flow", "length"}
_DRAWS = {"seed", "python", "numpy"}
_SOURCES = {"clock", "pid", "entropy"}
_EXPLAINED = {"outside", "batch", "control-flow", "length", "state"}
Both = tuple[list[Suspect], list[Suspect]]


def conclude(verdict: Verdict, causes: tuple[str, ...], suspects: Both, before: int) -> Verdict:
    """Add what makes the runs part.

    Args:
        causes: the perturbations without which they do not part.
        suspects: what both runs took in from outside torch.
        before: the number of the event that differs.
    """
    verdict = replace(verdict, causes=causes)
    for name in causes:
        kind, advice = _PERTURBED[name]
        verdict = replace(verdict, kind=kind, advice=advice)
    suspected = likely(*suspects, before)
    found = [one for one in suspected if _explains(one, verdict, causes)]
    if not found and not causes and verdict.kind in _DECIDED:
        found = [one for one in differing(*suspects, before) if _decides(one)]
    if found:
        return _told(verdict, found[0], suspected)
    return _with_sets(verdict) if "hash" in causes else verdict


def _with_sets(verdict: Verdict) -> Verdict:
    """The verdict with the lines that make sets, in the user's files that it names."""
    places = [place.called_from or place for _, place in verdict.places]
    told = sets_in(place.file for place in places)
    return replace(verdict, facts=(told, *verdict.facts)) if told else verdict


def _explains(suspect: Suspect, verdict: Verdict, causes: Sequence[str]) -> bool:
    """Whether what was taken in there can make this difference."""
    is_torch = suspect.what.startswith("torch")
    if "fs" in causes:
        return suspect.kind == "listing"
    if "hash" in causes:
        return suspect.kind == "seed" and not (verdict.op == "" and is_torch)
    if "time" in causes:
        return suspect.kind in ("clock", "seed")
    if causes or suspect.kind == "listing":
        return False
    if verdict.kind == "random" or is_torch:
        return is_torch and verdict.kind in ("random", "batch")
    return verdict.kind in _EXPLAINED


def _decides(suspect: Suspect) -> bool:
    """Whether the program goes one way or the other for it."""
    return suspect.kind in ("clock", "pid") and suspect.place.source.startswith(_BRANCHES)


def _told(verdict: Verdict, culprit: Suspect, suspected: list[Suspect]) -> Verdict:
    """The verdict with the lines that come before those of the parting."""
    told = [culprit]
    if culprit.kind == "seed":  # with a value that was itself taken from outside
        near = (one for one in suspected if one.position == culprit.position)
        told += [one for one in near if one.kind in _SOURCES][:1]
    places, facts = verdict.places, verdict.facts
    for suspect in told:
        here = suspect.place
        if all((one.file, one.line) != (here.file, here.line) for _, one in places):
            role = _ROLES.get(suspect.kind, "read at")
            seen = [("seen at" if name == "at" else name, one) for name, one in places]
            places = ((role, here), *seen)
        facts = (sentence(suspect), *facts)
    if culprit.kind == "listing":
        verdict = replace(verdict, advice="")  # the sentence says what to do
    if not verdict.causes:
        is_draw = culprit.kind in _DRAWS or is_seeding(culprit)
        kind = "random" if is_draw else verdict.kind
        verdict = replace(verdict, kind=kind, advice="")
    return replace(verdict, places=places, facts=facts)
