"""Parameters that are not trained, though the program asks for it: what is wrong with each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ptools.debug.findings import Finding
from ptools.debug.gradients.fates import ENOUGH, Fate, Fates
from ptools.debug.gradients.flow import Cut, Flow
from ptools.debug.gradients.missing_told import (
    behind,
    forgotten,
    named,
    orphan,
    unreached,
    unused,
    zero,
)


@dataclass(frozen=True)
class Untrained:
    """Findings, and sentences that are no accusation."""

    findings: list[Finding]
    notes: list[str]


def untrained(fates: Fates, flow: Flow) -> Untrained:
    """Judge the fates of all parameters at the end of a program."""
    judge = _Judge(fates, flow)
    return Untrained([*judge.findings()], [*judge.notes()])


class _Judge:
    def __init__(self, fates: Fates, flow: Flow) -> None:
        self._fates = fates
        self._flow = flow
        self._all = fates.all()
        asked = [one for one in self._all if one.wanted >= ENOUGH and not one.frozen]
        self._idle = [one for one in asked if not one.moved and one.stepped and not one.written]
        self._without = [one for one in self._idle if not one.arrived]
        # An optimizer writes the parameters whose gradient is zero.
        self._zero = [
            one for one in asked if not one.moved and one.stepped and one.arrived >= ENOUGH
        ]
        self._cut = {one: cut for one in self._without if (cut := self._cut_of(one))}
        self._used = {one.kin for one in self._all if one.moved}

    def findings(self) -> Iterator[Finding]:
        yield from self._behind_cuts()
        loose = [one for one in self._without if one not in self._cut]
        for held in dict.fromkeys(one.optimizer for one in loose):
            lost = [one for one in loose if one.optimizer is held and _is_orphan(one)]
            if lost:
                yield orphan(lost, self._fates)
        loose = [one for one in loose if one.registered and self._is_surely_missed(one)]
        yield from self._by_line([one for one in loose if _is_unused(one)], unused)
        yield from self._by_line([one for one in loose if one.in_graph is not None], unreached)
        dead = [one for one in self._zero if one.kin not in self._used]
        yield from self._by_line(dead, zero)
        yield from self._by_line([*self._forgotten()], forgotten)

    def notes(self) -> Iterator[str]:
        held = [one for one in self._all if one.optimizer is not None]
        frozen = [one for one in held if one.frozen and not one.wanted]
        if frozen:
            yield f"frozen, and held by an optimizer all the same: {named(frozen)}"
        loose = [one for one in self._without if one not in self._cut and one.registered]
        silent = [one for one in loose if not self._is_surely_missed(one)]
        silent += [one for one in self._zero if one.kin in self._used]
        if silent:
            yield f"no gradient other than zero arrived at {named(silent)}"
        outside = [one for one in loose if one.in_graph is None and one.outside is not None]
        if outside:
            yield f"used only where gradients are off: {named(outside)}"
        meant = {*self._forgotten()}
        unheld = [one for one in self._unheld() if one not in meant]
        if unheld:
            yield (
                f"gradients are computed that no optimizer uses, of {named(unheld)}: "
                "requires_grad_(False) saves the time"
            )

    def _is_surely_missed(self, fate: Fate) -> bool:
        """Whether the user's own model leaves it out, and leaves out all of its like.

        A package's model may have heads that a program does not need, and an expert may get no
        tokens.
        """
        return fate.own and fate.kin not in self._used

    def _cut_of(self, fate: Fate) -> Cut | None:
        """The cut behind which a loss was computed from it; rather one that need not be."""
        cuts = [cut for cut in self._flow.reached if fate in cut.fates and cut.place]
        return min(cuts, key=lambda cut: not cut.smooth, default=None)

    def _behind_cuts(self) -> Iterator[Finding]:
        groups: dict[object, list[Fate]] = {}
        for fate, cut in self._cut.items():
            where = cut.off or cut.place
            groups.setdefault(where and (where.file, where.line), []).append(fate)
        for fates in groups.values():
            yield behind(self._cut[fates[0]], f"{named(fates, 1)} never got a gradient", fates)

    def _by_line(
        self, fates: Iterable[Fate], finding: Callable[[list[Fate], Fates], Finding]
    ) -> Iterator[Finding]:
        """One finding for the parameters that were made in one line."""
        groups: dict[object, list[Fate]] = {}
        for fate in fates:
            groups.setdefault(fate.made and fate.made.inner, []).append(fate)
        for group in groups.values():
            yield finding(group, self._fates)

    def _unheld(self) -> Iterator[Fate]:
        """Those that get gradients and are changed by nobody."""
        if any(held.steps >= ENOUGH for held in self._fates.optimizers.values()) or any(
            one.stepped for one in self._all
        ):
            for one in self._all:
                if one.moved and one.optimizer is None and not (one.written or one.frozen):
                    yield one

    def _forgotten(self) -> Iterator[Fate]:
        """Those that were meant to be held: made too late, hidden in a list, or the odd ones."""
        held = [one.root for one in self._all if one.optimizer is not None and one.registered]
        unheld = [*self._unheld()]
        roots = [one.root for one in unheld if one.registered]
        for one in unheld:
            late = one.order > self._fates.last_optimizer and one.root in held
            hidden = not one.registered and bool(one.used_by)
            few = one.registered and roots.count(one.root) < held.count(one.root)
            if late or hidden or few:
                yield one


def _is_unused(fate: Fate) -> bool:
    return fate.in_graph is None and fate.outside is None


def _is_orphan(fate: Fate) -> bool:
    return not fate.registered and _is_unused(fate)
