"""What grows from step to step, and who keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from ptools.console import counted
from ptools.debug.findings import Finding
from ptools.debug.memory.books import Books
from ptools.debug.memory.keepers import Keeper, SiteOf, keepers
from ptools.debug.memory.sites import Site, line_of
from ptools.debug.memory.storages import BUFFERS, OPTIMIZER, PARAMETERS
from ptools.files import human_bytes
from ptools.program.modules import Modules
from ptools.program.places import Place

FEWEST_STEPS = 8  # of which the last half is judged
_MOST_STEPS = 128  # that are kept; of more, every second, every fourth ...
_FEWEST_BYTES = 1024  # a step: a list of numbers grows too, and is no leak
_FEWEST_RISES = 3  # of what grows now and then
_NO_LEAK = (PARAMETERS, BUFFERS, OPTIMIZER)


@dataclass(frozen=True)
class Step:
    """The end of a step: its peak and what was alive after it, by device and by site."""

    step: int
    peaks: dict[str, int]
    live: dict[str, int]
    counts: dict[Site, int]
    sizes: dict[Site, int]


@dataclass(frozen=True)
class Growth:
    """How much more was alive from a site at the last step than in the middle of the run.

    `steady` tells whether it has grown all the time since, not just now and then.
    """

    site: Site
    count: int
    bytes: int
    steps: int
    steady: bool


class Leaks:
    """The ends of the steps, and from time to time a look at who keeps what grows."""

    def __init__(self, books: Books, site_of: SiteOf, modules: Modules) -> None:
        self._books = books
        self._site_of = site_of
        self._modules = modules
        self._keepers: dict[Site, Keeper] = {}
        self.begin()

    def begin(self) -> None:
        """Forget what were no steps."""
        self.steps: list[Step] = []
        self._last: Step | None = None
        self._ended = 0
        self._stride = 1
        self._begin = 0  # the sequence number of autograd's nodes with which the step began

    def end_step(self, step: int) -> None:
        """A step is through. Who keeps what is asked ever less often, since it takes a while."""
        self._last = self._taken(step)
        if self._ended % self._stride == 0:
            self.steps.append(self._last)
        self._ended += 1
        if len(self.steps) == _MOST_STEPS:
            self.steps = self.steps[::2]
            self._stride *= 2
        if self._ended >= FEWEST_STEPS and self._ended.bit_count() == 1:
            self._keepers |= self._asked(self._more())
        self._begin = torch._C._autograd._get_sequence_nr()

    def finish(self) -> None:
        """The program is through; what its functions kept is gone."""
        if self._last is not None and self.steps[-1] is not self._last:
            self.steps.append(self._last)
        self._keepers = self._asked([one.site for one in self.growing()]) | self._keepers

    def growing(self) -> list[Growth]:
        """The sites of which ever more is alive, in the last half of the run too.

        What is counted is storages, so that a growing batch is no leak, nor a cache that is full.
        """
        half = self.steps[-1].step / 2 if self.steps else 0
        late = [one for one in self.steps if one.step >= half]
        if len(late) <= FEWEST_STEPS // 2:
            return []
        first, last = late[0], late[-1]
        found = []
        for site, count in last.counts.items():
            counts = [one.counts.get(site, 0) for one in self.steps]
            steady = _rises(counts[-len(late) :])
            if steady or _climbs(counts, len(late)):
                size = last.sizes[site] - first.sizes.get(site, 0)
                more = count - first.counts.get(site, 0)
                found.append(Growth(site, more, size, last.step - first.step, steady))
        return found

    def findings(self) -> Iterator[Finding]:
        """A leak for each variable that keeps ever more."""
        groups: dict[str, list[Growth]] = {}
        for growth in self.growing():
            keeper = self._keepers.get(growth.site)
            if keeper is not None:
                groups.setdefault(keeper.name, []).append(growth)
        for growths in groups.values():
            growths.sort(key=lambda one: one.bytes, reverse=True)
            keepers = list(dict.fromkeys(self._keepers[one.site] for one in growths))
            keepers.sort(key=lambda one: not one.graph)
            size = sum(one.bytes for one in growths) / growths[0].steps
            # Copies of the best few models grow now and then too: but they hold no graph.
            steady = any(one.steady for one in growths)
            if keepers[0].graph or (steady and size >= _FEWEST_BYTES):
                yield self._finding(keepers, growths, size)

    def unexplained(self) -> list[Growth]:
        """What grew all the time and is kept by no variable."""
        return [
            one
            for one in self.growing()
            if one.site not in self._keepers
            and one.steady
            and one.bytes >= _FEWEST_BYTES * one.steps
        ]

    def _taken(self, step: int) -> Step:
        counts: dict[Site, int] = {}
        sizes: dict[Site, int] = {}
        ledgers = [one for device, one in self._books.ledgers.items() if device != "meta"]
        for ledger in ledgers:
            for holding in list(ledger.holdings.values()):
                if holding.count and holding.kind not in _NO_LEAK:
                    site = holding.site
                    counts[site] = counts.get(site, 0) + holding.count
                    sizes[site] = sizes.get(site, 0) + holding.bytes
        live = {one.device: one.live for one in ledgers}
        return Step(step, {one.device: one.end_step() for one in ledgers}, live, counts, sizes)

    def _more(self) -> list[Site]:
        """The sites of which more is alive than at a third of the steps so far.

        What grows now and then, as at each validation, has grown in few of the steps.
        """
        last = self.steps[-1]
        early = next(one for one in self.steps if one.step >= last.step / 3)
        return [site for site, count in last.counts.items() if count > early.counts.get(site, 0)]

    def _asked(self, sites: list[Site]) -> dict[Site, Keeper]:
        for site in sites:
            site.name(self._modules)
        if not sites:
            return {}
        return keepers(sites, self._books, self._site_of, self._begin, self._modules)

    def _finding(self, keepers: list[Keeper], growths: list[Growth], size: float) -> Finding:
        keeper, *others = keepers
        count = sum(one.count for one in growths)
        steps = growths[0].steps
        what = "keeps a graph" if keeper.graph else "grows"
        number = f"{count / steps:.3g}"
        noun = "tensor" if number == "1" else "tensors"
        more = f"{number} {noun} ({human_bytes(size)}) more each step"
        return Finding(
            kind="leak",
            summary=f"{keeper.name} {what}: {more}",
            places=tuple(self._places(keeper, growths)),
            facts=(
                f"in the last {counted(steps, 'step')}: {count:,} tensors, "
                f"{human_bytes(sum(one.bytes for one in growths))} more",
                *(
                    f"it keeps too: {line_of(one.site, self._modules)}"
                    for one in others
                    if one.site
                ),
            ),
            advice=_advice(keeper),
        )

    def _places(self, keeper: Keeper, growths: list[Growth]) -> Iterator[tuple[str, Place]]:
        """The line whose tensors are kept, then those that made most of what they keep alive."""
        kept = [one.site for one in growths if self._keepers[one.site] == keeper]
        others = [site for site in kept[:3] if site is not keeper.site]
        role = "in graph" if keeper.graph else "kept"
        for name, site in (("kept", keeper.site), *((role, one) for one in others)):
            place = site and site.place(self._modules)
            if place:
                yield name, place


def _rises(counts: list[int]) -> bool:
    """Whether it rises in each quarter, and hardly ever falls."""
    changes = [after - before for before, after in pairwise(counts)]
    if sum(change < 0 for change in changes) > len(changes) // 10:
        return False
    marks = [counts[quarter * (len(counts) - 1) // 4] for quarter in range(5)]
    return all(before < after for before, after in pairwise(marks))


def _climbs(counts: list[int], late: int) -> bool:
    """Whether it rises a few times, as regularly as validations come, to the end; never falls."""
    changes = [after - before for before, after in pairwise(counts)]
    rises = [place for place, change in enumerate(changes, start=1) if change]
    if min(changes) < 0 or len(rises) < _FEWEST_RISES:
        return False
    gaps = [after - before for before, after in pairwise(rises)]
    in_both_halves = rises[0] <= len(counts) - late < rises[-1]
    goes_on = len(counts) - rises[-1] <= max(gaps)
    return in_both_halves and goes_on and max(gaps) - min(gaps) <= 1


def _advice(keeper: Keeper) -> str:
    if keeper.graph and keeper.container:
        return (
            "keep the number, loss.item(), or the values, out.detach(): they hold no graph; "
            "evaluate under torch.no_grad()"
        )
    if keeper.graph:
        return (
            "cut the graph from step to step: state = state.detach(); add numbers up with "
            "loss.item()"
        )
    return "take out what is no longer needed (del, clear(), a deque with maxlen), or keep less"
