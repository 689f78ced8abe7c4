"""Several ranks: which one parts first, what follows from it, and whether they agree."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ptools.program.modules import Modules
from ptools.repro.events import REPLICAS, End, Event, Value
from ptools.repro.ranks import together
from ptools.repro.ranks.ranks import disagreement, same_batches
from ptools.repro.ranks.replicas import replicas
from ptools.repro.recording.digests import Digester
from ptools.repro.recording.tracer import Tracer
from ptools.repro.search import first_parting
from ptools.repro.trace import Trace, TraceWriter, trace_file

DONE = End(ended=True, watched=True)


@pytest.fixture
def traces(tmp_path: Path) -> Any:
    """Writes made-up traces, one for each rank of a run."""
    runs: list[Path] = []

    def write(*ranks: list[Event], ends: tuple[End, ...] = ()) -> dict[int, Trace]:
        folder = tmp_path / str(len(runs))
        folder.mkdir()
        runs.append(folder)
        found = {}
        for rank, events in enumerate(ranks):
            writer = TraceWriter(trace_file(str(folder), rank))
            for event in events:
                writer.event(event)
            writer.end(ends[rank] if ends else DONE)
            found[rank] = Trace(trace_file(str(folder), rank))
        return found

    return write


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def op(name: str, *values: tuple[str, int], step: int = 0) -> Event:
    return Event("op", name, step, 0, tuple(Value(who, "4 float32", crc) for who, crc in values))


def beat(kind: str, digest: int, step: int = 0) -> Event:
    return Event(kind, f"the {kind}", step, 0, (Value(kind, "4 float32", digest),))


def held(step: int, **digests: int) -> Event:
    values = tuple(Value(name, "4 float32", crc) for name, crc in digests.items())
    return Event(REPLICAS, "the parameters", step, 0, values)


def test_the_rank_whose_own_operation_differs_is_named_before_one_that_received_it(
    traces: Any,
) -> None:
    # Rank 0 has fewer beats behind it than rank 1, and yet only follows.
    def run(digest: int) -> dict[int, Trace]:
        zero = [op("aten::copy_", ("received src", digest), ("output", digest))]
        one = [beat("batch", 1), beat("loss", 2), op("aten::add", ("input self", 1), ("output", 9))]
        one[-1] = op("aten::add", ("input self", 1), ("output", digest))
        return traces(zero, one)  # type: ignore[no-any-return]

    found = first_parting(run(1), run(2))
    assert found is not None
    assert found.rank == 1
    assert found.facts == ("rank 0 follows, through a collective",)
    verdict = found.verdict(2)
    assert (verdict.kind, verdict.rank, verdict.op) == ("operation", 1, "aten::add")


def test_of_two_causes_the_one_with_fewer_beats_before_it_counts(traces: Any) -> None:
    def run(digest: int) -> dict[int, Trace]:
        zero = [beat("batch", 1), beat("loss", digest)]
        one = [beat("batch", digest), beat("loss", digest)]
        return traces(zero, one)  # type: ignore[no-any-return]

    found = first_parting(run(1), run(2))
    assert found is not None
    assert (found.rank, found.verdict(2).kind) == (1, "batch")


def test_numbers_that_no_rank_sent_otherwise_are_said_to_come_from_other_ranks(traces: Any) -> None:
    first = traces([op("aten::copy_", ("received src", 1))], [op("aten::mm", ("output", 7))])
    second = traces([op("aten::copy_", ("received src", 2))], [op("aten::mm", ("output", 7))])
    found = first_parting(first, second)
    assert found is not None
    verdict = found.verdict(2)
    assert (verdict.kind, verdict.rank) == ("collective", 0)
    assert "came from other ranks" in verdict.summary


KILLED = End(watched=True)
FAILED = End(ended=True, watched=True, error="ValueError: bad label")
LOST = End(ended=True, watched=True, error="RuntimeError: Connection closed by peer")
STOPPED = End(ended=True, watched=True, stopped=True)


@pytest.mark.parametrize(
    ("ends", "twins"),
    [
        ((KILLED, FAILED), (LOST, FAILED)),  # the launcher ended it, or it noticed by itself
        ((KILLED, DONE), (KILLED, DONE)),  # rank 1 called sys.exit(1)
        ((KILLED, KILLED), (KILLED, KILLED)),  # rank 1 was killed by something else
        ((KILLED, STOPPED), (DONE, STOPPED)),
        ((LOST, STOPPED), (KILLED, STOPPED)),
    ],
)
def test_where_a_rank_was_ended_with_another_says_nothing(
    ends: tuple[End, End], twins: tuple[End, End], traces: Any
) -> None:
    short, long = [beat("batch", 1)], [beat("batch", 1), beat("loss", 1)]
    first, second = traces(short, short, ends=ends), traces(long, short, ends=twins)
    assert first_parting(first, second) is None
    assert first_parting(second, first) is None


def test_a_crash_in_one_run_is_told_of_the_rank_that_failed(traces: Any) -> None:
    fine, short = [beat("batch", 1), beat("loss", 1), beat("state", 1)], [beat("batch", 1)]
    first = traces(fine, fine)
    second = traces(fine[:2], short, ends=(LOST, FAILED))
    found = first_parting(first, second)
    assert found is not None
    verdict = found.verdict(2)
    assert (verdict.kind, verdict.rank) == ("crash", 1)
    assert "ValueError: bad label" in verdict.summary


def test_one_rank_that_is_killed_in_one_run_alone_is_a_difference(traces: Any) -> None:
    fine, short = [beat("batch", 1), beat("loss", 1)], [beat("batch", 1)]
    found = first_parting(traces(fine, fine), traces(short, fine, ends=(KILLED, KILLED)))
    assert found is not None
    assert found.verdict(2).kind == "length"


def test_ranks_that_hold_the_same_parameters_agree(traces: Any) -> None:
    events = [beat("state", 1, 1), held(1, weight=1, bias=2)]
    # What differs otherwise, as the optimizer state of a rank, is its own.
    others = [beat("state", 5, 1), held(1, weight=1, bias=2)]
    assert disagreement(traces(events, others, events)) is None
    assert disagreement(traces(events)) is None


def test_the_first_step_after_which_a_rank_holds_another_parameter_is_named(traces: Any) -> None:
    events = [beat("state", 1, 1), held(1, weight=1), beat("state", 2, 2), held(2, weight=2)]
    others = [*events[:3], held(2, weight=3)]
    found = disagreement(traces(events, events, others))
    assert found is not None
    assert found.summary == "ranks 0 and 2 hold other parameters after 2 steps: weight"
    assert "they were equal after 1 step" in found.facts
    assert (found.kind, found.step) == ("ranks", 2)


def test_an_extra_step_of_a_rank_is_told_as_the_reason(traces: Any) -> None:
    events = [held(1, weight=1), held(2, weight=2)]
    more = [held(1, weight=1), held(2, weight=9), held(3, weight=10)]
    ends = End(ended=True, steps=2), End(ended=True, steps=3)
    found = disagreement(traces(events, more, ends=ends))
    assert found is not None
    assert found.facts[-1] == "rank 0 made 2 steps in all, rank 1 made 3"


def test_other_learning_rates_and_gradients_are_told_as_reasons(traces: Any) -> None:
    def rank(rate: str, crc: int) -> list[Event]:
        values = (
            Value("learning rate of group 0", rate, len(rate)),
            Value("gradients", "2 tensors", crc),
        )
        return [Event("state", "the state", 1, 0, values), held(1, weight=crc)]

    found = disagreement(traces(rank("0.1", 1), rank("0.05", 2)))
    assert found is not None
    assert found.facts[0] == "learning rate of group 0 is 0.1 on rank 0 and 0.05 on rank 1"
    assert found.facts[1].startswith("their gradients differ too")


def test_ranks_that_train_on_the_same_batches_are_noted(traces: Any) -> None:
    def rank(*batches: int, end: list[Event]) -> list[Event]:
        return [one for crc in batches for one in (beat("batch", crc), beat("loss", crc))] + end

    ddp = [held(1, weight=1)]
    same = traces(rank(1, 2, end=ddp), rank(1, 2, end=ddp), rank(1, 3, end=ddp))
    assert same_batches(same) == [
        "ranks 0 and 1 trained on the same batches: use a DistributedSampler"
    ]
    # One batch may be equal by chance, and without DDP it may have to be.
    assert same_batches(traces(rank(1, end=ddp), rank(1, end=ddp))) == []
    assert same_batches(traces(rank(1, 2, end=[]), rank(1, 2, end=[]))) == []
    # All evaluate on the same data.
    evaluated = [beat("batch", 8), beat("batch", 9), *ddp]
    assert same_batches(traces(rank(1, 2, end=evaluated), rank(3, 4, end=evaluated))) == []


def traced(program: Any) -> list[tuple[str, list[str]]]:
    """The operations of a program, each with the names of its values."""
    found: list[tuple[str, list[str]]] = []

    def record(operation: Any, values: tuple[Value, ...], *_: Any) -> None:
        found.append((operation.name, [one.name for one in values]))

    def entered(what: str, tensor: torch.Tensor) -> None:
        pass

    tracer = Tracer(Modules(), Digester(), record, entered)
    tracer.switch(True)
    try:
        program()
    finally:
        tracer.switch(False)
    return found


def names(found: list[tuple[str, list[str]]], name: str) -> list[str]:
    return next(values for operation, values in found if operation == name)


def test_what_a_collective_makes_is_not_read_before_it_is_there(alone: None) -> None:
    ours, theirs = torch.ones(4), torch.zeros(4)

    def program() -> None:
        work = dist.all_reduce(ours, async_op=True)
        work.wait()
        dist.all_gather([theirs], ours + 1)
        theirs.mul(2)

    found = traced(program)
    tensors = [one for one in names(found, "c10d::allreduce_") if "argument" not in one]
    assert tensors == ["input tensors[0]"]
    assert "received self" in names(found, "aten::add")
    gathered = names(found, "c10d::allgather_")
    assert "input input_tensors[0]" in gathered
    assert not any(one.startswith(("input output", "output", "written")) for one in gathered)
    assert "received self" in names(found, "aten::mul")


def test_memory_that_a_collective_filled_is_written(alone: None) -> None:
    def program() -> None:
        out = torch.empty(4)
        dist.all_gather([out], torch.ones(4))
        out.mul(2)

    assert names(traced(program), "aten::mul")[0] == "received self"


def test_parameters_beside_ddp_and_added_to_it_later_are_told_apart(alone: None) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    ddp = DistributedDataParallel(net)
    net.append(nn.Linear(3, 1))
    scale = nn.Parameter(torch.ones(2))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = torch.optim.SGD([*ddp.parameters(), scale, frozen])
    modules = Modules()
    modules.add(ddp)
    told = {one.name for one in replicas([optimizer], modules, Digester())}
    assert told == {
        "Sequential.0.weight",
        "Sequential.0.bias",
        "Sequential.1.weight",
        "Sequential.1.bias",
        "Sequential.2.weight (added after DDP was made)",
        "Sequential.2.bias (added after DDP was made)",
        "a parameter (2,) (outside DDP)",
    }


def test_without_ddp_ranks_may_hold_what_they_like() -> None:
    net = nn.Linear(2, 2)
    modules = Modules()
    modules.add(net)
    assert replicas([torch.optim.SGD(net.parameters())], modules, Digester()) == []


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(together.LAUNCHED, "there")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(together, "STAY", 0.1)


def test_processes_that_have_all_come_as_far_end_together(
    launched: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    together.leave(str(tmp_path))
    monkeypatch.setenv("RANK", "0")
    assert together.meet(str(tmp_path), leader=0)
    monkeypatch.setenv("RANK", "1")
    assert together.meet(str(tmp_path), leader=0)


def test_who_is_waited_for_goes_on_and_is_missed(
    launched: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not together.meet(str(tmp_path), leader=0)
    monkeypatch.setenv("RANK", "0")
    assert not together.meet(str(tmp_path), leader=0)
    assert [file.name for file in tmp_path.iterdir()] == ["arrived_0"]


def test_one_process_alone_waits_for_none(tmp_path: Path) -> None:
    assert together.meet(str(tmp_path), leader=0)
    assert not list(tmp_path.iterdir())
