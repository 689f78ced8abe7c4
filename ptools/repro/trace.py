"""The file in which a process writes what it did: a line of JSON for each event."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ptools.program.places import Place, place_from
from ptools.repro.events import BEATS, End, Event, event_from
from ptools.repro.suspects.notes import Suspect, suspect_from, suspects_in

if TYPE_CHECKING:
    from ptools.program.modules import Modules
    from ptools.program.spots import Spot


class TraceWriter:
    """Writes a trace; each place is written once, before the first event that it belongs to."""

    def __init__(self, file: Path | IO[str]) -> None:
        self._file = file.open("w", encoding="utf-8") if isinstance(file, Path) else file
        self._places: dict[object, int] = {}

    def place(self, spot: Spot, modules: Modules) -> int:
        """The number of a place."""
        key = spot.inner, spot.outer, id(spot.module)
        number = self._places.get(key)
        if number is None:
            place = spot.place(modules)
            number = self._places[key] = 0 if place is None else len(self._places) + 1
            if place is not None:
                self._write({"place": number, **asdict(place)})
        return number

    def event(self, event: Event) -> None:
        """Write an event; a beat is on its way at once, whatever becomes of the process."""
        self._write(event.row())
        if event.kind in BEATS:
            self._file.flush()

    def end(self, end: End) -> None:
        """Write how the run ended; it may be written again."""
        self._write({"end": asdict(end)})
        self._file.flush()

    def _write(self, row: Any) -> None:
        with suppress(OSError, ValueError):  # no disk is full enough to change how a program ends
            self._file.write(json.dumps(row, separators=(",", ":")) + "\n")


class Trace:
    """A trace that is read while it is compared: `places` and `end` are whole at its end.

    Args:
        source: the file that a process wrote, or what a record of it holds, compressed.
    """

    def __init__(self, source: Path | bytes) -> None:
        self.places: dict[int, Place] = {}
        self.end = End()
        self._source = source

    def lines(self) -> Iterator[str]:
        """The lines as they were written."""
        source = self._source
        if isinstance(source, bytes):
            with gzip.open(io.BytesIO(source), "rt", encoding="utf-8") as lines:
                yield from lines
        else:
            with source.open(encoding="utf-8") as lines:
                yield from lines

    def suspects(self) -> list[Suspect]:
        """What the process and its children took in from outside torch."""
        told = [suspect_from(one) for one in self.end.suspects]
        if isinstance(self._source, bytes):
            return told
        return told + suspects_in(self._source.with_suffix(""))

    def events(self) -> Iterator[Event]:
        """The events in order."""
        for line in self.lines():
            try:
                row = json.loads(line)
            except ValueError:  # the process was killed while it wrote
                return
            if isinstance(row, list):
                yield event_from(row)
            elif "place" in row:
                number = row.pop("place")
                self.places[number] = place_from(row)
            elif "end" in row:
                told = row["end"]
                for name in ("notes", "suspects"):
                    told[name] = tuple(told[name])
                self.end = End(**told)


def trace_file(folder: str, rank: int) -> Path:
    """Where a process writes; its own children, in a folder beside it of the same name."""
    return Path(folder, f"trace_{rank}.json")


def traces_in(folder: str) -> dict[int, Trace]:
    """The traces that processes left, by rank."""
    files = Path(folder).glob("trace_*.json")
    return {int(file.stem.rpartition("_")[2]): Trace(file) for file in files}
