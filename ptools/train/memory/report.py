"""The tensors that are alive: how large, whose, and which line made them."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ptools.console import counted, escaped
from ptools.files import human_bytes
from ptools.train.memory.owners import OTHER, holders, named_tensors, saved_tensors
from ptools.train.memory.storages import Named, Storages, all_of
from ptools.train.memory.watch import line_that_made, watched_storages

_SHOWN = 20  # rows of the table


@dataclass(frozen=True)
class Alive:
    """One storage that is alive.

    Args:
        owner: `Net.fc.weight`, `Adam exp_avg of Net.fc.weight`, `losses[3] in train()`.
        kind: parameter, buffer, gradient, optimizer state, variable, saved for backward, other.
        shape: of the tensor by which it is known; a view may show less of it than `bytes`.
        line: that made it; empty unless `watch_memory` was on.
        views: the names of further tensors that lie in it.
    """

    owner: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    device: str
    bytes: int
    line: str
    views: tuple[str, ...]


@dataclass(frozen=True)
class Pool:
    """What a GPU's allocator says, in bytes: the peak is the largest that was allocated."""

    device: str
    allocated_bytes: int
    reserved_bytes: int
    largest_free_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class MemoryReport:
    """What is alive, largest first; made by `memory_report`."""

    tensors: tuple[Alive, ...]
    pools: tuple[Pool, ...]

    def totals(self) -> dict[str, dict[str, int]]:
        """Bytes by device and kind."""
        found: dict[str, Counter[str]] = {}
        for one in self.tensors:
            found.setdefault(one.device, Counter())[one.kind] += one.bytes
        return {device: dict(kinds.most_common()) for device, kinds in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"totals": self.totals()}

    def __str__(self) -> str:
        return "\n".join([_table(self.tensors), *_sentences(self)])


def memory_report() -> MemoryReport:
    """All tensors alive in this process, each storage counted once.

    Within `watch_memory` also the line that made each. Names are looked for in models, optimizers,
    variables, and what these hold. What only a graph keeps is found where it is an operation's
    own; not counted are the workspaces inside operations, and what extensions hold.

    Example:
        >>> print(memory_report())
    """
    alive = Storages()
    for source in (named_tensors(), saved_tensors()):
        for kind, name, tensor in source:
            alive.add(kind, name, tensor)
    for tensor in all_of(torch.Tensor):
        alive.add(OTHER, "", tensor)
    held = holders(
        one.tensor for found in alive.tensors.values() for one in found[:1] if not one.name
    )
    rows = [
        _alive(alive.storages[key], found[0], found[1:], held)
        for key, found in alive.tensors.items()
    ]
    rows += [
        _unseen(one)
        for one in watched_storages()
        if one._cdata not in alive.storages and one.nbytes() and one.device.type != "meta"
    ]
    rows.sort(key=lambda row: -row.bytes)
    return MemoryReport(tuple(rows), tuple(_pools()))


def _alive(
    storage: torch.UntypedStorage, first: Named, others: list[Named], held: dict[int, str]
) -> Alive:
    return Alive(
        owner=first.name or held.get(id(first.tensor), "held outside Python"),
        kind=first.kind,
        shape=tuple(first.tensor.shape),
        dtype=str(first.tensor.dtype).removeprefix("torch."),
        device=str(storage.device),
        bytes=storage.nbytes(),
        line=line_that_made(storage),
        views=tuple(dict.fromkeys(one.name or "a tensor without a name" for one in others)),
    )


def _unseen(storage: torch.UntypedStorage) -> Alive:
    size, device = storage.nbytes(), str(storage.device)
    line = line_that_made(storage)
    return Alive("held outside Python", OTHER, (size,), "uint8", device, size, line, ())


def _pools() -> Iterator[Pool]:
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return
    free: Counter[int] = Counter()
    for segment in torch.cuda.memory_snapshot():
        for block in segment["blocks"]:
            if block["state"] == "inactive":
                free[segment["device"]] = max(free[segment["device"]], block["size"])
    for device in range(torch.cuda.device_count()):
        allocated, reserved = (
            torch.cuda.memory_allocated(device),
            torch.cuda.memory_reserved(device),
        )
        peak = torch.cuda.max_memory_allocated(device)
        yield Pool(f"cuda:{device}", allocated, reserved, free[device], peak)


def _table(tensors: tuple[Alive, ...]) -> str:
    """Those of a list, and others that are alike, in one row."""
    from rich.console import Console

    from ptools.tables import columns

    alike: dict[Any, list[Alive]] = {}
    for one in tensors:
        owner = re.sub(r"\[\d+\]", "[...]", one.owner)
        key = owner, one.kind, one.shape, one.dtype, one.device, one.line
        alike.setdefault(key, []).append(one)
    rows = sorted(alike.items(), key=lambda row: -sum(one.bytes for one in row[1]))
    table = columns("owner", "kind", "shape", "dtype", "device", "count", "size", "made at")
    for key, group in rows[:_SHOWN]:
        owner, kind, shape, dtype, device, line = key
        views = f" (and {counted(len(group[0].views), 'view')})" if group[0].views else ""
        owner = escaped((group[0].owner if len(group) == 1 else owner) + views)
        size = human_bytes(sum(one.bytes for one in group))
        text = "x".join(map(str, shape)) or "scalar"
        table.add_row(owner, kind, text, dtype, device, f"{len(group):,}", size, escaped(line))
    out = io.StringIO()
    console = Console(file=out, width=200, markup=False, highlight=False, color_system=None)
    console.print(table)
    rest = [one for _, group in rows[_SHOWN:] for one in group]
    more = f"and {counted(len(rest), 'tensor')} more: {human_bytes(sum(r.bytes for r in rest))}\n"
    return "\n".join(map(str.rstrip, out.getvalue().splitlines())) + (f"\n{more}" if rest else "\n")


def _sentences(report: MemoryReport) -> Iterator[str]:
    for device, kinds in report.totals().items():
        parts = ", ".join(f"{kind} {human_bytes(count)}" for kind, count in kinds.items())
        yield f"{device}: {human_bytes(sum(kinds.values()))} alive: {parts}"
    for pool in report.pools:
        yield (
            f"{pool.device}: the allocator has {human_bytes(pool.reserved_bytes)}, of which "
            f"{human_bytes(pool.allocated_bytes)} are in use, at most "
            f"{human_bytes(pool.peak_bytes)} so far; the largest free block is "
            f"{human_bytes(pool.largest_free_bytes)}"
        )
    if not any(one.line for one in report.tensors):
        yield "within `with watch_memory():` it also tells the lines that made them"
