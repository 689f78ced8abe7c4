"""Which of the values that a program took in made two runs of it part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count

from ptools.repro.suspects.notes import Suspect
from ptools.repro.suspects.sources import GENERATORS

_FOLLOWS = 4
_ALWAYS = {"entropy", "pid", "clock", "network"}
_LIKELY = ("entropy", "listing", "pid", "clock", "network")  # the likelier, the earlier
_LISTERS = {"", "os", "glob", "pathlib", "fnmatch"}  # list for the user, and do not sort
_DRAWS = {"python", "numpy"}
_DURATIONS = ("perf_counter", "monotonic", "process_time")
_TOLD = re.compile(r"\bprint\(|\blog|\bstrftime\b|\bwriter?\.")  # for a person to read
_SEEDED = (".seed", ".Random", ".default_rng", ".SeedSequence")
_SORTED = re.compile(r"\bsorted\(|\.sort\(")

Key = tuple[object, ...]


def differing(a: Sequence[Suspect], b: Sequence[Suspect], before: int) -> list[Suspect]:
    """What run A took in otherwise than run B, or only one of them, up to where they part.

    The first is the likeliest cause:

    0. a seeding call: with another value, or without one, if the generator's draws then differ
       (torch's own draws, and those of a generator object, are not noted: they are taken to)
    1. a draw from Python's or NumPy's global generator that had not been seeded by then
    2. other text on stdin
    3. what is another in each run: entropy, the pid, the time of day, and a listing in another
       order; the nearest one before the runs part
    4. a draw that differs though its generator was seeded alike: it follows from something else
    5. what mostly does no harm: the same as 3 asked for by a package, measured as a duration, or
       printed; a sorted listing; the network

    Args:
        before: the number of the first event that differs.
    """
    return [one for *_, one in _ranked(a, b, before)]


def likely(a: Sequence[Suspect], b: Sequence[Suspect], before: int) -> list[Suspect]:
    """Of those that differ, the ones that may well be the cause: not those of 4 and 5."""
    return [one for rank, *_, one in _ranked(a, b, before) if rank < _FOLLOWS]


def _ranked(
    a: Sequence[Suspect], b: Sequence[Suspect], before: int
) -> list[tuple[int, int, int, Suspect]]:
    ours, others = _keyed(a), _keyed(b)
    # What stands only in run B is told as well: a draw that A did not come to.
    pairs = [(one, others.get(key)) for key, one in ours.items()]
    pairs += [(one, None) for key, one in others.items() if key not in ours]
    found = [one for one, other in pairs if one.position <= before and _differs(one, other, before)]
    drawn = {one.kind for one in found if one.kind in _DRAWS}
    ranked = [(_rank(one, drawn), -_nearest(one, before), _likely(one), one) for one in found]
    return sorted(ranked, key=lambda row: row[:3])


def is_seeding(suspect: Suspect) -> bool:
    """Whether it began a generator's numbers."""
    return suspect.what in GENERATORS or suspect.what.endswith(_SEEDED)


def sentence(suspect: Suspect) -> str:
    """What a line did that makes the runs differ, and what to do about it."""
    kind, what = suspect.kind, suspect.what
    if kind in _DRAWS:
        return _drew(suspect)
    if kind == "seed":
        return f"seeded with another value here: {_call(suspect, suspect.value)}"
    if kind == "entropy":
        return _from_entropy(suspect)
    return {
        "clock": f"{what}() was read here: no two runs read the same",
        "pid": f"{what}() was read here: each process has another",
        "listing": "the folder is listed in whatever order the file system has: sort it",
        "stdin": f"{what}() read other text here: give both runs the same input",
        "network": f"{what}() asked {suspect.value} here: what comes from there may change",
    }[kind]


def _drew(suspect: Suspect) -> str:
    """A draw from a global generator."""
    seeding = "random.seed" if suspect.kind == "python" else "np.random.seed"
    drew = f"{suspect.what}() drew other numbers"
    if suspect.seeded:
        return f"{drew} though it was seeded: an earlier draw, or what it draws from, differs"
    return f"{drew}: {seeding}() was not called before"


def _from_entropy(suspect: Suspect) -> str:
    what = suspect.what
    if not is_seeding(suspect):
        return f"{what}() is another in each run: take it from a seeded generator"
    call = f"{what}()" if suspect.through else _call(suspect, "")
    instead = f"give {call} a seed"
    if what.startswith("torch."):  # its seed() takes none
        instead = f"write {call.removesuffix('seed()')}manual_seed(0)"
    return f"seeded by the system here, with another value each time: {instead}"


def _call(suspect: Suspect, argument: str) -> str:
    """As it stands in the program, if it does on one line."""
    part = suspect.place.part
    return part if part.endswith(")") else f"{suspect.what}({argument})"


def _keyed(suspects: Sequence[Suspect]) -> dict[Key, Suspect]:
    """By what and where, and by number where a line does it more than once."""
    found: dict[Key, Suspect] = {}
    for one in suspects:
        place = one.place
        where = place.file, place.line, place.function, place.part
        key = (one.process, one.what, *where)
        found[next((*key, number) for number in count() if (*key, number) not in found)] = one
    return found


def _differs(one: Suspect, other: Suspect | None, before: int) -> bool:
    if other is None or one.kind != other.kind or one.kind in _ALWAYS:
        return True
    for (_, here, mine), (_, there, its) in zip(one.history, other.history, strict=False):
        if max(here, there) > before:
            return False
        if mine != its:
            return True
    # Not each of many calls is in the history.
    return one.kind != "seed" and one.count == other.count and one.value != other.value


def _rank(one: Suspect, drawn: set[str]) -> int:
    if one.kind == "seed" or (one.kind == "entropy" and one.what in GENERATORS):
        generator = GENERATORS.get(one.what)
        return 0 if generator not in _DRAWS or generator in drawn else 5
    if one.kind in _DRAWS:
        return _FOLLOWS if one.seeded else 1
    if one.kind == "stdin":
        return 2
    return 5 if _is_harmless(one) else 3


def _is_harmless(one: Suspect) -> bool:
    if one.kind == "listing":
        return one.through not in _LISTERS or bool(_SORTED.search(one.place.source))
    return (
        bool(one.through)
        or one.kind == "network"
        or one.what.partition(".")[2].startswith(_DURATIONS)
        or bool(_TOLD.search(one.place.source))
    )


def _nearest(one: Suspect, before: int) -> int:
    return max((at for _, at, _ in one.history if at <= before), default=one.position)


def _likely(one: Suspect) -> int:
    return _LIKELY.index(one.kind) if one.kind in _LIKELY else 0
