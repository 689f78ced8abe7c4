"""Where two traces part, by traces that were written by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ptools.repro.compare import Compared, compare
from ptools.repro.events import BEATS, End, Event, Value
from ptools.repro.trace import Trace, TraceWriter
from ptools.repro.verdict import Verdict, judge

Compare = Callable[..., Compared]


def loss(number: int, step: int = 0) -> Event:
    return Event("loss", "the loss", step, 0, (Value("the loss", "scalar float32", number),))


def state(number: int, step: int = 0) -> Event:
    return Event("state", "the state", step, 0, (Value("parameters", "4 tensors", number),))


def added(given: int, made: int, name: str = "aten::add", step: int = 0) -> Event:
    values = Value("input self", "3 float32", given), Value("output", "3 float32", made)
    return Event("op", name, step, 0, values)


def batch(samples: Sequence[int], numbers: Sequence[int]) -> Event:
    field = Value("batch[1]", "3 int64", hash(tuple(samples)), tuple(samples))
    return Event("batch", "a batch", 0, 0, (field,), samples=tuple(numbers))


@pytest.fixture
def compared(tmp_path: Path) -> Compare:
    """Write two traces, and compare them."""

    def run(
        first: Sequence[Event], second: Sequence[Event], ends: Sequence[End] = (End(), End())
    ) -> Compared:
        traces = []
        for name, events, end in zip("ab", (first, second), ends, strict=True):
            writer = TraceWriter(tmp_path / f"trace_{name}.json")
            for event in events:
                writer.event(event)
            writer.end(end)
            traces.append(Trace(tmp_path / f"trace_{name}.json"))
        return compare(*traces)

    return run


def verdict_of(found: Compared, ends: tuple[End, End] = (End(), End())) -> Verdict:
    assert found.parting is not None
    return judge(found.parting, ends)


def test_equal_traces_do_not_part(compared: Compare) -> None:
    events = [added(1, 2), loss(3), state(4), loss(5)]
    found = compared(events, events)
    assert (found.parting, found.events, found.beats) == (None, 4, 3)


def test_nothing_parts_from_nothing(compared: Compare) -> None:
    assert compared([], []) == Compared(None, 0, 0)


def test_the_first_event_that_differs_is_found_with_what_came_before(compared: Compare) -> None:
    first = [loss(1), state(2), loss(3), added(4, 5), loss(6), loss(7)]
    second = [loss(1), state(2), loss(3), added(4, 9), loss(6), loss(8)]
    parting = compared(first, second).parting
    assert (parting.index, parting.beats, parting.synced) == (3, 3, 2)
    assert parting.is_located
    assert [one.digest for one in parting.values()] == [5, 9]


def test_a_loss_that_differs_is_no_operation_yet(compared: Compare) -> None:
    parting = compared([state(1), loss(2)], [state(1), loss(3)]).parting
    assert not parting.is_located
    assert {parting.a.kind, parting.b.kind} <= BEATS


def test_the_same_inputs_and_another_output_accuse_the_operation(compared: Compare) -> None:
    assert verdict_of(compared([added(4, 5)], [added(4, 9)])).kind == "operation"


def test_another_input_of_which_no_operation_told_came_from_outside(compared: Compare) -> None:
    assert verdict_of(compared([added(4, 5)], [added(3, 5)])).kind == "outside"


def test_another_operation_is_control_flow(compared: Compare) -> None:
    verdict = verdict_of(compared([added(1, 2)], [added(1, 2, "aten::mul")]))
    assert verdict.kind == "control-flow"
    assert "aten::add" in verdict.summary
    assert "aten::mul" in verdict.summary


def test_a_draw_from_a_generator_in_another_state_is_random(compared: Compare) -> None:
    drawn = [
        Event("op", "aten::randn", 0, 0, (Value("output", "3 float32", crc),), generator=state)
        for crc, state in ((1, 10), (2, 11))
    ]
    assert verdict_of(compared(drawn[:1], drawn[1:])).kind == "random"


def test_a_draw_from_the_same_state_accuses_the_operation(compared: Compare) -> None:
    drawn = [
        Event("op", "aten::randn", 0, 0, (Value("output", "3 float32", crc),), generator=10)
        for crc in (1, 2)
    ]
    assert verdict_of(compared(drawn[:1], drawn[1:])).kind == "operation"


def test_what_was_read_unwritten_is_memory(compared: Compare) -> None:
    read = [
        Event("op", "aten::add", 0, 0, (Value("output", "3 float32", crc),), unwritten=True)
        for crc in (1, 2)
    ]
    assert verdict_of(compared(read[:1], read[1:])).kind == "memory"


@pytest.mark.parametrize("shorter", [0, 1])
def test_a_run_that_is_over_sooner_is_told_by_its_letter(compared: Compare, shorter: int) -> None:
    runs = [[loss(1), loss(2)], [loss(1), loss(2)]]
    runs[shorter].pop()
    verdict = verdict_of(compared(*runs))
    assert verdict.kind == "length"
    assert f"run {'AB'[shorter]} was over" in verdict.summary


def test_a_run_that_failed_is_told_with_its_error(compared: Compare) -> None:
    ends = End(ended=True), End(ended=True, error="ValueError: no such class")
    verdict = verdict_of(compared([loss(1), loss(2)], [loss(1)], ends), ends)
    assert verdict.kind == "crash"
    assert "run B failed: ValueError: no such class" in verdict.summary


def test_a_run_that_we_stopped_did_not_end_sooner(compared: Compare) -> None:
    ends = End(), End(ended=True, stopped=True)
    assert compared([loss(1), loss(2)], [loss(1)], ends) == Compared(None, 1, 1)


def test_the_field_and_the_sample_of_a_batch_are_told(compared: Compare) -> None:
    verdict = verdict_of(compared([batch([7, 8, 9], [4, 5, 6])], [batch([7, 1, 9], [4, 5, 6])]))
    assert (verdict.kind, verdict.value) == ("batch", "batch[1]")
    assert any("sample 1: number 5 of the data set" in fact for fact in verdict.facts)


def test_samples_that_were_drawn_otherwise_are_told_so(compared: Compare) -> None:
    verdict = verdict_of(compared([batch([7, 8, 9], [4, 5, 6])], [batch([8, 7, 9], [5, 4, 6])]))
    assert any("another order" in fact for fact in verdict.facts)


def test_a_loader_at_work_is_told_with_the_batch_that_it_brought(compared: Compare) -> None:
    def fetched(crc: int) -> Event:
        return Event("op", "aten::add", 0, 0, (Value("input self", "", crc),), fetching=True)

    first = [fetched(1), batch([7, 8, 9], [4, 5, 6])]
    second = [fetched(2), batch([7, 8, 1], [4, 5, 6])]
    verdict = verdict_of(compared(first, second))
    assert verdict.kind == "outside"
    assert any("sample 2: number 6 of the data set" in fact for fact in verdict.facts)


def test_a_trace_is_read_up_to_where_the_process_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "trace_0.json"
    writer = TraceWriter(file)
    writer.end(End())
    writer.event(loss(1))
    writer.event(loss(2))
    file.write_bytes(file.read_bytes()[:-9])
    trace = Trace(file)
    assert [one.values[0].digest for one in trace.events()] == [1]
    assert not trace.end.ended
