"""Mode `memory`: what is held at the peak is what arithmetic, and torch itself, say."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ptools.debug.memory.mode import Memory
from ptools.debug.mode import Log, watching
from ptools.program.clock import Clock
from ptools.program.modules import Modules

IN, WIDE, OUT, BATCH = 64, 256, 32, 128


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(IN, WIDE)
        self.second = nn.Linear(WIDE, OUT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.first(x)
        return self.second(torch.tanh(wide))


def memory(tensorboard: Path | None = None) -> Memory:
    return Memory(
        Log(True), Clock(), Modules(), tensorboard=str(tensorboard) if tensorboard else None
    )


def train(steps: int, device: str = "cpu") -> list[float]:
    torch.manual_seed(0)
    net = Net().to(device)
    optimizer = torch.optim.Adam(net.parameters())
    losses = []
    for _ in range(steps):
        loss = net(torch.randn(BATCH, IN).to(device)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def watched(steps: int, **rest: Any) -> Memory:
    mode = memory(**rest)
    with watching(mode):
        train(steps)
    mode.finish()
    return mode


def at_peak(mode: Memory, device: str = "cpu") -> dict[str, int]:
    sums: dict[str, int] = {}
    for held in mode.books.ledgers[device].peak.held:
        sums[held.kind] = sums.get(held.kind, 0) + held.bytes
    return sums


def test_the_kinds_at_the_peak_are_those_of_arithmetic() -> None:
    held = at_peak(watched(3))
    parameters = 4 * (IN * WIDE + WIDE + WIDE * OUT + OUT)
    assert held["parameters"] == parameters
    assert held["optimizer state"] == 2 * parameters + 4 * 4  # and a step count a parameter
    assert held["gradients"] <= parameters
    assert held["inputs"] == 4 * BATCH * IN
    # Most is alive when tanh goes backward: its own output, and the loss.
    assert held["activations"] == 4 * (BATCH * WIDE + 1)
    assert held["temporaries"] == 4 * (2 * BATCH * WIDE + 1)  # gradients of its output and input


def test_the_bytes_of_the_tables_add_up_to_the_peak() -> None:
    mode = watched(3)
    kinds = mode.log.tables[0]
    sizes = [row[1] for row in kinds.rows]
    assert sum(sizes[:-1]) == sizes[-1] == mode.books.ledgers["cpu"].peak.bytes


def test_the_peak_is_what_torchs_profiler_has_seen_allocated() -> None:
    with torch.profiler.profile(profile_memory=True) as profile:
        train(2)
    allocated = _profiled_peak(profile)
    assert watched(2).books.ledgers["cpu"].peak.bytes == pytest.approx(allocated, rel=0.01)


def _profiled_peak(profile: torch.profiler.profile) -> int:
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def test_after_each_step_the_model_its_state_and_what_variables_hold_are_alive() -> None:
    parameters = 4 * (IN * WIDE + WIDE + WIDE * OUT + OUT)
    last = watched(4).leaks.steps[-1]
    held_by_variables = 4  # loss
    assert last.live["cpu"] == 4 * parameters + 4 * 4 + held_by_variables


def test_the_lines_that_hold_most_are_those_that_made_it() -> None:
    lines = watched(2).log.tables[1]
    assert lines.title.startswith("lines that hold most at the peak")
    (wide,) = (
        row
        for row in lines.rows
        if "torch.tanh" in str(row[0]) and row[1] == "Net" and row[2] == "forward"
    )
    assert wide[3:6] == ("activations", 1, 0.125)


def test_a_long_line_is_cut_in_the_table() -> None:
    mode = memory()
    with watching(mode):
        zeros, ones, twos = torch.zeros(100), torch.ones(200), torch.full((300,), 2.0)
    mode.finish()
    (line,) = {str(row[0]) for row in mode.log.tables[1].rows}
    assert line.endswith(" zeros, ones, twos = torch.zeros(100), torch.one...")
    del zeros, ones, twos


def test_buffers_are_told_from_data() -> None:
    mode = memory()
    with watching(mode):
        norm = nn.BatchNorm1d(1000)
        norm(torch.randn(8, 1000)).sum().backward()
    mode.finish()
    assert at_peak(mode)["buffers"] == 2 * 4 * 1000 + 8
    assert at_peak(mode)["inputs"] == 4 * 8 * 1000


def test_views_share_a_storage_and_resizing_changes_it() -> None:
    mode = memory()
    with watching(mode):
        base = torch.zeros(100)
        views = [base.view(10, 10), base[:50], base.detach()]
        assert mode.books.ledgers["cpu"].live == 400
        base.resize_(1000)
        assert mode.books.ledgers["cpu"].live == 4000
        del base, views
        assert mode.books.ledgers["cpu"].live == 0


def test_what_comes_from_outside_is_counted_when_it_is_first_read() -> None:
    outside = torch.ones(256)
    mode = memory()
    with watching(mode):
        made = outside + 1
        assert mode.books.ledgers["cpu"].live == 2 * 4 * 256
    mode.finish()
    phases = {held.site.phase for held in mode.books.ledgers["cpu"].peak.held}
    assert phases == {"from outside", "forward"}
    del made


def test_sparse_tensors_count_and_meta_tensors_do_not() -> None:
    mode = memory()
    with watching(mode):
        empty = torch.empty(1000, 1000, device="meta") * 2
        sparse = torch.eye(10).to_sparse()
    mode.finish()
    assert at_peak(mode)["other"] >= 10 * 4 + 2 * 10 * 8
    assert not any("meta" in table.title for table in mode.log.tables)
    del empty, sparse


def test_training_goes_the_same_way_bit_for_bit() -> None:
    mode = memory()
    with watching(mode):
        losses = train(5)
    assert losses == train(5)


def test_nothing_is_kept_alive() -> None:
    mode = memory()
    gc.disable()
    try:
        with watching(mode):
            net = Net()
            x = torch.randn(BATCH, IN)
            loss = net(x).sum()
            loss.backward()
            refs = [weakref.ref(one) for one in (net, net.first.weight, x, loss)]
            del net, x, loss
            alive = [one for one in refs if one() is not None]
        assert not alive
        assert mode.books.ledgers["cpu"].live == 0
    finally:
        gc.enable()


def test_after_finish_no_storage_is_watched() -> None:
    mode = memory()
    with watching(mode):
        kept = torch.zeros(10)
    mode.finish()
    assert weakref.getweakrefcount(kept.untyped_storage()) == 0


def test_the_memory_over_time_is_written_for_tensorboard_and_perfetto(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    mode = watched(3, tensorboard=tmp_path / "runs")
    read = EventAccumulator(str(tmp_path / "runs"), size_guidance={"scalars": 0}).Reload()
    curve = read.Scalars("memory cpu/parameters, MiB")
    parameters = 4 * (IN * WIDE + WIDE + WIDE * OUT + OUT)
    assert max(one.value for one in curve) == pytest.approx(parameters / 2**20)

    (file,) = (tmp_path / "runs").glob("memory.*.json")
    events = json.loads(file.read_text())["traceEvents"]
    counters = [event for event in events if event["ph"] == "C"]
    sums = [sum(event["args"].values()) for event in counters]
    assert max(sums) == mode.books.ledgers["cpu"].peak.bytes
    assert all(size >= 0 for event in counters for size in event["args"].values())
    times = [event["ts"] for event in counters]
    assert times == sorted(times)
    assert [event["name"] for event in events if event["ph"] == "i"] == [
        "step 1",
        "step 2",
        "step 3",
    ]


def test_a_folder_that_cannot_be_written_to_is_said_in_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mode = watched(1, tensorboard=tmp_path / "file")
    assert any("not written" in note for note in mode.log.notes)
    assert mode.log.tables


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_peak_is_that_of_the_allocator() -> None:
    train(1, "cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train(3, "cuda")
    mode = memory()
    with watching(mode):
        train(3, "cuda")
    mode.finish()
    allocated = torch.cuda.max_memory_allocated() - before
    assert mode.books.ledgers["cuda:0"].peak.bytes == pytest.approx(allocated, rel=0.05)


def test_a_step_of_two_optimizers_is_one_step_and_a_closure_runs_forward_in_it() -> None:
    mode = memory()
    with watching(mode):
        net = nn.Linear(IN, 1)
        slow = torch.optim.LBFGS(net.parameters(), max_iter=3)
        fast = torch.optim.SGD(net.parameters(), 0.1)

        def closure() -> torch.Tensor:
            slow.zero_grad()
            loss = net(torch.ones(BATCH, IN)).pow(2).mean()
            loss.backward()
            return loss

        for _ in range(3):
            slow.step(closure)
            fast.step()
    mode.finish()
    assert [step.step for step in mode.leaks.steps] == [1, 2, 3]
    assert at_peak(mode)["optimizer state"] >= 4 * (IN + 1)
