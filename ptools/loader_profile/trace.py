"""The spans of a profile as a Chrome trace, which ui.perfetto.dev and chrome://tracing open.

The format is that of the document "Trace Event Format": complete events ("X") in microseconds,
and metadata ("M") that names the lanes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptools.errors import PtoolsError
from ptools.files import atomic_write
from ptools.loader_profile.report import LoaderProfile, Span

_PROCESS = 1  # viewers take the thread whose number is that of the process for the main one


def write_trace(profile: LoaderProfile, path: Path, force: bool = False) -> None:
    """Write the spans as a trace that begins at 0, one lane a worker below that of the consumer.

    Raises:
        PtoolsError: the profile has no spans.
        UsageError: the file exists and `force` is not given, or it cannot be placed there.
    """
    if not profile.spans:
        raise PtoolsError(
            f"no batch was traced, so there is nothing to write to {path}",
            hint="give the measurement more time: --budget 120",
        )
    lanes = sorted({span.lane for span in profile.spans}, key=_order)
    threads = {lane: number for number, lane in enumerate(lanes, _PROCESS)}
    events = [*_names(profile.target, threads), *_events(profile.spans, threads)]
    with atomic_write(path, force) as temporary:
        trace = {"displayTimeUnit": "ms", "traceEvents": events}
        temporary.write_text(json.dumps(trace, allow_nan=False), encoding="utf-8")


def _order(lane: str) -> tuple[bool, int, str]:
    """Main first, `worker 2` before `worker 10`."""
    name, _, number = lane.rpartition(" ")
    return (lane != "main", int(number), name) if number.isdigit() else (lane != "main", 0, lane)


def _names(target: str, threads: dict[str, int]) -> list[dict[str, Any]]:
    events = [_metadata("process_name", _PROCESS, name=target)]
    for lane, thread in threads.items():
        events.append(_metadata("thread_name", thread, name=lane))
        events.append(_metadata("thread_sort_index", thread, sort_index=thread))
    return events


def _metadata(kind: str, thread: int, **values: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": _PROCESS, "tid": thread, "args": values}


def _events(spans: Iterable[Span], threads: dict[str, int]) -> list[dict[str, Any]]:
    """The spans in the order of time, an outer one before those within it."""
    ordered = sorted(spans, key=lambda span: (span.start, -span.end))
    first = ordered[0].start

    def moment(seconds: float) -> int:
        # Both ends are rounded, not the length: neighbours that touch must not come to overlap.
        return round((seconds - first) * 1e9)

    return [
        {
            "ph": "X",
            "name": span.name,
            "pid": _PROCESS,
            "tid": threads[span.lane],
            "ts": moment(span.start) / 1e3,
            "dur": (moment(span.end) - moment(span.start)) / 1e3,
            "args": {"batch": span.batch},
        }
        for span in ordered
    ]
