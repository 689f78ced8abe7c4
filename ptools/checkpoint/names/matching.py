"""Fit the names of a checkpoint to a model's own, and say what still differs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ptools.checkpoint.names.wrappers import bare, changes, unwrap

Shapes = Mapping[str, tuple[int, ...]]
_Names = dict[str, str]

_DEEPEST = 4  # elements in a prefix that may be removed, added or replaced
_COMMON = 8  # places in the model at which the end of a name says nothing about its front
_TRIED = 6  # prefixes, most promising first
_COMPARED = 50  # names on each side, in search of the nearest
_LONGEST = 200  # characters of a name that is compared


@dataclass(frozen=True)
class Match:
    """How a checkpoint fits a model.

    `names` maps the checkpoint's names, in their order, to the model's; what is no part of the
    model (AveragedModel's `n_averaged`) is left out. `rule` tells a person what was done. `matched`
    counts equal names with equal shapes, `missing` are the model's names that nothing fills,
    `unexpected` the renamed ones that the model lacks, `mismatched` names with their shapes in the
    checkpoint and in the model, and `near` goes from an unexpected or missing name to the one on
    the other side that it resembles.
    """

    names: dict[str, str]
    rule: str
    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    near: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether the checkpoint fills the whole model."""
        return not self.missing and not self.mismatched


def match(checkpoint: Shapes, model: Shapes) -> Match:
    """Choose the renaming under which most names and shapes are the model's.

    Tried are the names as they are, without their wrappers, and both with a prefix removed, added
    or replaced, as the two sets of names suggest. Of equals the smallest change is taken. Two names
    never become one.

        match({"module.w": (3,), "module.b": (1,)}, {"w": (3,), "b": (1,)}).rule
        # "module. removed"
    """
    candidates = list(_candidates(checkpoint, model))
    best = max(candidates, key=lambda candidate: candidate.score)
    rule = _rule(best.names, checkpoint)
    equals = [other for other in candidates if other.score == best.score and best.prefixed]
    others = {_rule(other.names, checkpoint) for other in equals} - {rule}
    if others:
        rule += f" (as good: {'; '.join(sorted(others))})"
    return _compare(best.names, rule, checkpoint, model)


def _compare(names: _Names, rule: str, checkpoint: Shapes, model: Shapes) -> Match:
    shapes = {new: checkpoint[old] for old, new in names.items()}
    missing = tuple(name for name in model if name not in shapes)
    unexpected = tuple(name for name in shapes if name not in model)
    both = [(name, shape, model[name]) for name, shape in shapes.items() if name in model]
    mismatched = tuple(found for found in both if found[1] != found[2])
    near = _near(unexpected, shapes, missing, model) | _near(missing, model, unexpected, shapes)
    matched = len(both) - len(mismatched)
    return Match(names, rule, matched, missing, unexpected, mismatched, near)


@dataclass(frozen=True)
class _Candidate:
    names: dict[str, str]
    score: tuple[int, int, int]  # equal with equal shapes, equal, steps taken (negative)
    prefixed: bool = False


def _candidates(checkpoint: Shapes, model: Shapes) -> Iterator[_Candidate]:
    """All that is worth a try, the smallest changes first."""
    views = list(_views(checkpoint, model))
    for step, view in enumerate(views):
        names = view.mapped("", "")
        if _is_injective(names):
            candidate = _Candidate(names, (*_equal(names, checkpoint, model), -step))
            yield candidate
            if candidate.score[0] == len(model):
                return
    for step, view in enumerate(views):
        for removed, added in _prefixes(view, checkpoint, model):
            names = view.mapped(removed, added)
            if _is_injective(names) and _is_plausible(names, view, checkpoint, model):
                score = (*_equal(names, checkpoint, model), -step - 1)
                yield _Candidate(names, score, prefixed=True)


@dataclass(frozen=True)
class _View:
    """Both sides with less to tell them apart: names without wrappers, say."""

    checkpoint: dict[str, str]  # name -> name in this view
    model: dict[str, str]  # name in this view -> name

    def mapped(self, removed: str, added: str) -> dict[str, str]:
        """The checkpoint's names to the model's, with one prefix in the place of the other."""
        found = {}
        for old, name in self.checkpoint.items():
            if name.startswith(removed):
                name = added + name[len(removed) :]
            found[old] = self.model.get(name, name)
        return found


def _views(checkpoint: Shapes, model: Shapes) -> Iterator[_View]:
    same = {name: name for name in checkpoint}
    own = {name: name for name in model}
    yield _View(same, own)
    unwrapped = {old: new for old, new in unwrap(checkpoint).names.items() if new is not None}
    if unwrapped != same:
        yield _View(unwrapped, own)
    plain = {bare(name): name for name in model}
    stripped = {old: bare(old) for old in unwrapped}
    if len(plain) == len(model) and (stripped != unwrapped or plain != own):
        yield _View(stripped, plain)


def _prefixes(view: _View, checkpoint: Shapes, model: Shapes) -> list[tuple[str, str]]:
    """Prefixes to remove and to add, found where the ends of names agree, most frequent first."""
    ends: dict[str, list[str]] = {name: [""] for name in view.model}
    for name in view.model:
        for front, end in _splits(name):
            places = ends.setdefault(end, [])
            if len(places) <= _COMMON:
                places.append(front)
    votes: Counter[tuple[str, str]] = Counter()
    for old, name in view.checkpoint.items():
        for front, end in (("", name), *_splits(name)):
            places = ends.get(end, [])
            for place in places if len(places) <= _COMMON else [""] * ("" in places):
                # x.model. -> y.model. is no more than x. -> y.
                if not (front and place and front.split(".")[-2] == place.split(".")[-2]):
                    same = checkpoint[old] == model[view.model[place + end]]
                    votes[front, place] += 2 if same else 1
    del votes["", ""]
    return [pair for pair, _ in votes.most_common(_TRIED)]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    at = name.find(".")
    for _ in range(_DEEPEST):
        if at < 0:
            return
        yield name[: at + 1], name[at + 1 :]
        at = name.find(".", at + 1)


def _is_injective(names: dict[str, str]) -> bool:
    return len(set(names.values())) == len(names)


def _equal(names: _Names, checkpoint: Shapes, model: Shapes) -> tuple[int, int]:
    shared = [(old, new) for old, new in names.items() if new in model]
    return sum(checkpoint[old] == model[new] for old, new in shared), len(shared)


def _is_plausible(names: _Names, view: _View, checkpoint: Shapes, model: Shapes) -> bool:
    """Whether the prefix explains most of what agrees: one stray `fc.` is no `head.`."""
    before = view.mapped("", "")
    gained = {old: new for old, new in names.items() if new != before[old]}
    _, shared = _equal(gained, checkpoint, model)
    most = 2 * shared > _equal(names, checkpoint, model)[1]
    return most and 4 * shared >= min(len(checkpoint), len(model))


def _rule(names: _Names, checkpoint: Shapes) -> str:
    """What was done, for a person: "module. and *._orig_mod. removed"."""
    done: dict[str, list[str]] = {}
    for (removed, added), _ in changes(names).most_common():
        if removed and added:
            done.setdefault("", []).append(f"{removed} replaced by {added}")
        else:
            done.setdefault("added" if added else "removed", []).append(removed or added)
    parts = [f"{_listed(found)} {verb}".strip() for verb, found in done.items()]
    dropped = [name for name in checkpoint if name not in names]
    if dropped:
        parts.append(f"{_listed(dropped)} left out")
    return ", ".join(parts) or "nothing"


def _listed(found: list[str]) -> str:
    shown = found if len(found) <= 3 else [*found[:2], f"{len(found) - 2} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def _near(names: Sequence[str], shapes: Shapes, others: Sequence[str], theirs: Shapes) -> _Names:
    """For each name the most similar of the others, where that is plausible."""
    found = {}
    within = [other for other in others[:_COMPARED] if len(other) <= _LONGEST]
    for name in names[:_COMPARED]:
        if len(name) <= _LONGEST:
            alike = [other for other in within if theirs[other] == shapes[name]]
            close = get_close_matches(name, alike, 1, 0.6)
            close = close or get_close_matches(name, within, 1, 0.85)
            if close:
                found[name] = close[0]
    return found
