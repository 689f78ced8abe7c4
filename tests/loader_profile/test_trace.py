"""The trace as a viewer reads it: JSON in the Trace Event Format."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ptools.errors import PtoolsError, UsageError
from ptools.loader_profile.report import LoaderProfile, Settings, Span, Trial, Wait
from ptools.loader_profile.trace import write_trace

RUN = Trial(Settings(2, 8, 2), 1, 1, 1, 9, 1, 8, Wait(0, 0, 0, 0, 0), 1, 0, 0, 0, 1)
PROFILE = LoaderProfile("train.py:loader", cores=2, clocks=3, current=RUN)
BOOT = 123_456.789  # `time.perf_counter` begins anywhere


def spans(*workers: int, batches: int = 4) -> tuple[Span, ...]:
    """Each worker's batches end to end, of any length, lane by lane as they are collected."""
    random, found = Random(0), []
    for worker in workers:
        end = BOOT + random.random() / 1e3
        for batch in range(batches):
            start, middle = end, end + random.random() / 30
            end = middle + random.random() / 30
            found.append(Span(f"worker {worker}", "fetch", start, middle, batch))
            found.append(Span(f"worker {worker}", "collate", middle, end, batch))
    found += [Span("main", "wait", BOOT + n / 30, BOOT + n / 30 + 0.02, n) for n in range(batches)]
    return tuple(found)


def written(found: tuple[Span, ...], path: Path) -> list[dict[str, Any]]:
    write_trace(replace(PROFILE, spans=found), path)
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    assert isinstance(events, list)
    return events


def complete(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == "X"]


def named(events: list[dict[str, Any]], kind: str, value: str) -> dict[int, Any]:
    """What the metadata says, by thread."""
    return {event["tid"]: event["args"][value] for event in events if event["name"] == kind}


def test_every_event_has_what_the_format_asks_for(folder: Path) -> None:
    events = written(spans(0, 1), folder / "t.json")
    assert {event["ph"] for event in events} == {"M", "X"}
    assert all({"name", "pid", "tid", "args"} <= event.keys() for event in events)
    assert len({event["pid"] for event in events}) == 1
    assert named(events, "process_name", "name") == {1: "train.py:loader"}


def test_a_span_is_a_complete_event_in_microseconds(folder: Path) -> None:
    found = (
        Span("worker 0", "fetch", BOOT, BOOT + 0.25, 7),
        Span("worker 0", "collate", BOOT + 0.25, BOOT + 0.375, 7),
    )
    fetch, collate = complete(written(found, folder / "t.json"))
    assert (fetch["name"], fetch["args"]) == ("fetch", {"batch": 7})
    assert (fetch["ts"], fetch["dur"]) == (0.0, pytest.approx(250_000))
    assert (collate["ts"], collate["dur"]) == (pytest.approx(250_000), pytest.approx(125_000))


def test_main_is_the_first_lane_and_the_workers_follow_by_number(folder: Path) -> None:
    events = written(spans(10, 2, 0), folder / "t.json")
    lanes = named(events, "thread_name", "name")
    order = named(events, "thread_sort_index", "sort_index")
    assert [lanes[thread] for thread in sorted(lanes, key=lambda thread: order[thread])] == [
        "main",
        "worker 0",
        "worker 2",
        "worker 10",
    ]
    assert {event["tid"] for event in complete(events)} == lanes.keys()


def test_time_begins_at_nought_and_never_goes_back(folder: Path) -> None:
    events = complete(written(spans(0, 1, 2), folder / "t.json"))
    times = [event["ts"] for event in events]
    assert times[0] == 0
    assert times == sorted(times)
    assert all(event["dur"] >= 0 for event in events)


def test_spans_that_touch_do_not_overlap(folder: Path) -> None:
    """To the nanosecond, which is what viewers keep: an overlap would be drawn as nesting."""
    events = complete(written(spans(0, 1, 2, batches=50), folder / "t.json"))
    for thread in {event["tid"] for event in events}:
        lane = [event for event in events if event["tid"] == thread]
        ends = [round(1000 * event["ts"]) + round(1000 * event["dur"]) for event in lane]
        starts = [round(1000 * event["ts"]) for event in lane]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_an_outer_span_comes_before_those_within_it(folder: Path) -> None:
    found = (
        Span("main", "inner", BOOT, BOOT + 1, 0),
        Span("main", "outer", BOOT, BOOT + 2, 0),
    )
    events = complete(written(found, folder / "t.json"))
    assert [event["name"] for event in events] == ["outer", "inner"]


def test_a_file_is_replaced_only_if_forced(folder: Path) -> None:
    profile = replace(PROFILE, spans=spans(0))
    path = folder / "t.json"
    path.write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        write_trace(profile, path)
    assert path.read_text() == "mine"
    write_trace(profile, path, force=True)
    assert json.loads(path.read_text())["traceEvents"]
    assert [other.name for other in folder.iterdir()] == ["t.json"]


def test_without_spans_no_file_is_written(folder: Path) -> None:
    with pytest.raises(PtoolsError, match="no batch was traced") as caught:
        write_trace(PROFILE, folder / "t.json")
    assert "--budget" in str(caught.value.hint)
    assert not list(folder.iterdir())
