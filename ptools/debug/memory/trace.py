"""Live bytes over time: for TensorBoard, and as a Chrome trace that ui.perfetto.dev opens."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptools.events import event_file
from ptools.files import atomic_write

_MOST_POINTS = 4096
_PROCESS = 1

Totals = dict[tuple[str, str], int]  # bytes by device and kind


class Timeline:
    """How bytes changed at each operation; when there are too many, for groups of operations.

    Changes can be entered late: what a storage was for turns out after it was made.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._shift = 0  # 2 ** shift operations share a point
        self._changes: dict[int, Totals] = {}
        self._times: dict[int, float] = {}
        self._steps: dict[int, float] = {}

    def add(self, device: str, kind: str, operation: int, size: int) -> None:
        """From this operation on there are so many bytes more, or less."""
        point = operation >> self._shift
        changes = self._changes.get(point)
        if changes is None:
            if len(self._changes) >= _MOST_POINTS:
                self._merge()
                point = operation >> self._shift
            changes = self._changes.setdefault(point, {})
            self._times.setdefault(point, self._now())
        changes[device, kind] = changes.get((device, kind), 0) + size

    def step(self, step: int) -> None:
        """An optimizer step is completed."""
        if len(self._steps) >= _MOST_POINTS:
            for one in list(self._steps)[::2]:
                del self._steps[one]
        self._steps[step] = self._now()

    def curve(self) -> Iterator[tuple[int, float, Totals]]:
        """Operation, seconds since the beginning, and what is then alive."""
        totals: Totals = {}
        for point in sorted(self._changes):
            for key, size in self._changes[point].items():
                totals[key] = totals.get(key, 0) + size
            yield point << self._shift, self._times[point], dict(totals)

    def write(self, folder: Path) -> Path:
        """Write a new event file into a folder, and beside it the trace; the trace's path.

        Raises:
            UsageError: the folder cannot be written to.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        with event_file(folder) as add:
            for operation, _, totals in self.curve():
                values = [
                    Summary.Value(tag=f"memory {device}/{kind}, MiB", simple_value=size / 2**20)
                    for (device, kind), size in totals.items()
                ]
                add(step=operation, summary=Summary(value=values))
        path = folder / f"memory.{time.time_ns()}.json"
        with atomic_write(path) as temporary:
            trace = {"displayTimeUnit": "ms", "traceEvents": [*self._events()]}
            temporary.write_text(json.dumps(trace), encoding="utf-8")
        return path

    def _events(self) -> Iterator[dict[str, Any]]:
        yield {"ph": "M", "name": "process_name", "pid": _PROCESS, "args": {"name": "tensors"}}
        for _, seconds, totals in self.curve():
            for device in sorted({device for device, _ in totals}):
                kinds = {kind: size for (one, kind), size in totals.items() if one == device}
                yield {
                    "ph": "C",
                    "name": f"bytes on {device}",
                    "pid": _PROCESS,
                    "ts": seconds * 1e6,
                    "args": kinds,
                }
        for step, seconds in self._steps.items():
            yield {
                "ph": "i",
                "name": f"step {step}",
                "pid": _PROCESS,
                "tid": _PROCESS,
                "ts": seconds * 1e6,
                "s": "p",
            }

    def _merge(self) -> None:
        """Have two points share one."""
        self._shift += 1
        times, self._times = self._times, {}
        changes, self._changes = self._changes, {}
        for point, sizes in sorted(changes.items()):
            totals = self._changes.setdefault(point >> 1, {})
            self._times.setdefault(point >> 1, times[point])
            for key, size in sizes.items():
                totals[key] = totals.get(key, 0) + size

    def _now(self) -> float:
        return time.perf_counter() - self._began
