"""The tables of mode `memory`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ptools.debug.findings import Table
from ptools.debug.memory.books import Books
from ptools.debug.memory.leaks import Step
from ptools.debug.memory.sites import line_of
from ptools.debug.memory.storages import KINDS, Held, Ledger
from ptools.program.modules import Modules

_MOST_ROWS = 12
Row = tuple[str | int | float | None, ...]


def tables(books: Books, steps: list[Step], modules: Modules) -> list[Table]:
    """For each device: the peak by kind, by line and by module; and the steps."""
    found = []
    for device, ledger in sorted(books.ledgers.items()):
        if device == "meta" or not ledger.peak.bytes:
            continue
        found += [
            _kinds(ledger, modules),
            _lines(ledger, modules),
            _modules(ledger, modules),
        ]
        if steps:
            found.append(_steps(device, steps))
    return found


def _kinds(ledger: Ledger, modules: Modules) -> Table:
    peak = ledger.peak
    where = f", {peak.site.phase}: {line_of(peak.site, modules)}" if peak.site else ""
    sums: Counter[str] = Counter()
    for held in peak.held:
        sums[held.kind] += held.bytes
    rows = [(kind, sums[kind], *_size(sums[kind], peak.bytes)) for kind in KINDS if sums[kind]]
    total = "all", peak.bytes, *_size(peak.bytes, peak.bytes)
    title = f"peak of tensor memory on {ledger.device}, after {peak.step} steps{where}"
    return Table(title, ("kind", "bytes", "MiB", "share, %"), (*rows, total))


def _lines(ledger: Ledger, modules: Modules) -> Table:
    def key(held: Held) -> Row:
        site = held.site
        return line_of(site, modules), site.name(modules), site.phase, held.kind

    columns = "line", "module", "phase", "kind", "tensors", "MiB", "share, %"
    title = f"lines that hold most at the peak on {ledger.device}"
    return Table(title, columns, tuple(_largest(ledger, key)))


def _modules(ledger: Ledger, modules: Modules) -> Table:
    def key(held: Held) -> Row:
        return (held.site.name(modules) or "outside modules",)

    columns = "module", "tensors", "MiB", "share, %"
    title = f"modules that made most of it on {ledger.device}"
    return Table(title, columns, tuple(_largest(ledger, key)))


def _largest(ledger: Ledger, key: Callable[[Held], Row]) -> Iterator[Row]:
    counts: Counter[Row] = Counter()
    sizes: Counter[Row] = Counter()
    for held in ledger.peak.held:
        name = key(held)
        counts[name] += held.count
        sizes[name] += held.bytes
    listed = sizes.most_common()
    for name, size in listed[:_MOST_ROWS]:
        yield *name, counts[name], *_size(size, ledger.peak.bytes)
    rest = listed[_MOST_ROWS:]
    if rest:
        size, count = sum(size for _, size in rest), sum(counts[name] for name, _ in rest)
        blanks = (None,) * (len(rest[0][0]) - 1)
        yield f"{len(rest)} more", *blanks, count, *_size(size, ledger.peak.bytes)


def _steps(device: str, steps: list[Step]) -> Table:
    rows = (
        (one.step, _mib(one.peaks.get(device, 0)), _mib(one.live.get(device, 0)))
        for one in _some(steps)
    )
    title = f"steps on {device}"
    return Table(title, ("step", "peak, MiB", "alive after it, MiB"), tuple(rows))


def _some(steps: list[Step]) -> Iterable[Step]:
    """The first, ever fewer of the following, and the last."""
    powers = {2**power - 1 for power in range(len(steps).bit_length())}
    return (steps[place] for place in sorted({*powers, len(steps) - 1}) if place < len(steps))


def _size(size: int, of: int) -> tuple[Any, Any]:
    return _mib(size), round(100 * size / of, 1)


def _mib(size: int) -> float:
    return float(f"{size / 2**20:.3g}")
