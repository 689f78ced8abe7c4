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
from ptools.debug.memory.sites import Site
from ptools.debug.memory.storages import BUFFERS, OPTIMIZER, PARAMETERS
from ptools.debug.modules import Modules
from ptools.files import human_bytes

FEWEST_STEPS = 8  # of which the last half is judged
_MOST_STEPS = 128  # that are kept; of more, every second, every fourth ...
_FEWEST_BYTES = 1024  # a step: a list of numbers grows too, and is no leak
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
    """How much more was alive from a site at the last step than in the middle of the run."""

    site: Site
    count: int
    bytes: int
    steps: int


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
        """The sites of which ever more is alive: in each quarter of the last half, and never less.

        What is counted is storages, so that a growing batch is no leak, nor a cache that is full.
        """
        half = self.steps[-1].step / 2 if self.steps else 0
        late = [one for one in self.steps if one.step >= half]
        if len(late) <= FEWEST_STEPS // 2:
            return []
        first, last = late[0], late[-1]
        return [
            Growth(
                site,
                count=last.counts[site] - first.counts.get(site, 0),
                bytes=last.sizes[site] - first.sizes.get(site, 0),
                steps=last.step - first.step,
            )
            for site in last.counts
            if _rises([one.counts.get(site, 0) for one in late])
        ]

    def findings(self) -> Iterator[Finding]:
        """A leak for each variable that keeps ever more."""
        groups: dict[Keeper, list[Growth]] = {}
        for growth in self.growing():
            keeper = self._keepers.get(growth.site)
            if keeper is not None:
                groups.setdefault(keeper, []).append(growth)
        for keeper, growths in groups.items():
            growths.sort(key=lambda one: one.bytes, reverse=True)
            size = sum(one.bytes for one in growths) / growths[0].steps
            if keeper.graph or size >= _FEWEST_BYTES:
                yield self._finding(keeper, growths, size)

    def unexplained(self) -> list[Growth]:
        """What grew and is kept by no variable."""
        return [
            one
            for one in self.growing()
            if one.site not in self._keepers and one.bytes >= _FEWEST_BYTES * one.steps
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

    def _finding(self, keeper: Keeper, growths: list[Growth], size: float) -> Finding:
        count = sum(one.count for one in growths)
        steps = growths[0].steps
        what = "keeps a graph" if keeper.graph else "grows"
        number = f"{count / steps:.3g}"
        noun = "tensor" if number == "1" else "tensors"
        more = f"{number} {noun} ({human_bytes(size)}) more each step"
        lines = [keeper.site, *(one.site for one in growths[:3] if one.site is not keeper.site)]
        roles = ["kept", *["in graph" if keeper.graph else "kept"] * 3]
        places = [
            (role, place)
            for role, site in zip(roles, lines, strict=False)
            if site is not None and (place := site.place(self._modules)) is not None
        ]
        return Finding(
            kind="leak",
            summary=f"{keeper.name} {what}: {more}",
            places=tuple(places),
            facts=(
                f"in the last {counted(steps, 'step')}: {count:,} tensors, "
                f"{human_bytes(sum(one.bytes for one in growths))} more",
            ),
            advice=_advice(keeper),
        )


def _rises(counts: list[int]) -> bool:
    changes = [after - before for before, after in pairwise(counts)]
    if sum(change < 0 for change in changes) > len(changes) // 10:
        return False
    marks = [counts[quarter * (len(counts) - 1) // 4] for quarter in range(5)]
    return all(before < after for before, after in pairwise(marks))


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
