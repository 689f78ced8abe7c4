"""Tables by line and by module, against lines that were made slow and torch's own sums."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode

from ptools.errors import UsageError
from ptools.train.profiling import Profile, Row, profile

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SOURCE = Path(__file__).read_text(encoding="utf-8").splitlines()


@pytest.fixture(autouse=True)
def one_thread(folder: Path) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.wide = nn.Sequential(nn.Linear(16, 1024), nn.Linear(1024, 1024), nn.ReLU())
        self.last = nn.Linear(1024, 4)
        self.square = nn.Parameter(torch.randn(500, 500))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        scale = self.square.mm(self.square).mean()  # slow line
        x = self.wide(x)
        return self.last(x * scale).exp()  # quick line


def line(mark: str) -> str:
    """Where the line with this comment is, as the tables name it."""
    (number,) = [at for at, text in enumerate(SOURCE, 1) if text.endswith(f"# {mark}")]
    return f"{__file__}:{number}"


def row(rows: tuple[Row, ...], name: str) -> Row:
    (found,) = [one for one in rows if one.name == name]
    return found


def train(step: Callable[[], object], count: int, net: nn.Module | None = None) -> list[float]:
    torch.manual_seed(0)
    net = Net() if net is None else net
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-9)
    losses = []
    for _ in range(count):
        loss = net(torch.randn(8, 16)).mean()
        loss.backward()  # backward
        optimizer.step()  # optimizer
        optimizer.zero_grad()
        losses.append(loss.item())
        step()
    return losses


def profiled(count: int = 5, steps: Any = 3, **options: Any) -> tuple[Profile, Any]:
    """The report, and torch's own profiler beneath it."""
    with profile(steps) as profiler:
        train(profiler.step, count, **options)
    assert profiler.report is not None
    return profiler.report, profiler._profiler


def test_the_slow_line_and_the_slow_module_come_first() -> None:
    report, _ = profiled()
    assert report.lines[0].name == line("slow line")
    assert report.lines[0].source.startswith("scale = self.square.mm(self.square)")
    assert report.modules[0].name == "Net"  # whose own forward has the slow line
    parts = [one.name for one in report.modules if one.name.startswith("Net.")]
    assert parts[0] == "Net.wide.1"
    assert set(parts) == {"Net.first", "Net.wide.0", "Net.wide.1", "Net.wide.2", "Net.last"}


def test_the_backward_counts_for_the_line_of_its_forward() -> None:
    report, torchs = profiled()
    slow = row(report.lines, line("slow line"))
    assert 0.5 < slow.cpu_backward_seconds / slow.cpu_seconds < 0.85  # two products for one
    nodes = [one for one in torchs.events() if one.name.endswith("evaluate_function: ExpBackward0")]
    last = row(report.modules, "Net")
    assert len(nodes) == 3
    assert last.cpu_backward_seconds >= sum(one.cpu_time_total for one in nodes) / 1e6
    assert row(report.lines, line("optimizer")).cpu_backward_seconds == 0


def test_sums_are_those_of_torch() -> None:
    report, torchs = profiled()
    whole = sum(one.self_cpu_time_total for one in torchs.key_averages()) / 1e6
    for rows in (report.lines, report.modules):
        assert sum(one.cpu_seconds for one in rows) + report.outside_seconds == pytest.approx(whole)
    products = sum(one.count for one in torchs.key_averages() if one.key == "aten::mm")
    assert products > 0
    known = sum(one.cpu_seconds for one in report.lines if one.name)
    assert known > 0.99 * sum(one.cpu_seconds for one in report.lines)


def test_only_the_steps_asked_for_are_recorded() -> None:
    report, torchs = profiled(8, (2, 1, 2))
    assert report.steps == 2
    assert sum(one.name == "aten::exp" for one in torchs.events()) == 2
    assert row(report.lines, line("slow line")).calls == 2 * 2  # mm and mean, in each step
    assert profiled(5, 1)[0].steps == 1


def test_lines_outside_of_operations_are_counted_as_such() -> None:
    with profile((0, 1, 2)) as profiler:
        for _ in range(3):
            torch.ones(3).sum()
            time.sleep(0.02)
            profiler.step()
    assert profiler.report is not None and profiler.report.outside_seconds >= 0.04


def test_the_trace_is_whole_and_names_the_lines(folder: Path) -> None:
    reports = [profiled()[0] for _ in range(2)]
    files = sorted((folder / "profiles").iterdir())
    assert files == sorted(folder / report.trace for report in reports)
    names = {one.get("name") for one in json.loads(files[0].read_text())["traceEvents"]}
    assert {f"{line('slow line')} Net", "aten::mm", "ProfilerStep#2"} <= names


def test_the_report_reads_well_and_is_plain_data() -> None:
    report, _ = profiled()
    text = str(report)
    assert "scale = self.square.mm(self.square)" in text and "Net.wide.1" in text
    assert f"trace: {report.trace}" in text and "of 3 recorded" in text
    assert "device" not in text
    assert json.loads(json.dumps(report.to_dict()))["lines"][0]["name"] == line("slow line")


def test_a_training_does_the_same_when_it_is_profiled() -> None:
    with profile(2) as profiler:
        losses = train(profiler.step, 6)
    assert losses == train(lambda: None, 6)


def test_all_is_as_before_when_the_steps_are_recorded() -> None:
    call = nn.Module.__call__
    with profile((0, 1, 1)) as profiler:
        assert nn.Module.__call__ is not call
        train(profiler.step, 2)
        assert nn.Module.__call__ is call and _get_current_function_mode() is None
        assert profiler.report is not None
        train(profiler.step, 2)
    assert profiler.report.steps == 1


def test_a_loop_that_ends_early_is_reported_as_far_as_it_came() -> None:
    assert profiled(3, (0, 1, 10))[0].steps == 2


def test_a_loop_that_ends_before_all_recording_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with profile(5) as profiler:
        train(profiler.step, 2)
    assert profiler.report is None
    assert "say steps=(0, 0, 2)" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [0, (1, 1, 0), (-1, 1, 3)])
def test_steps_that_record_nothing_are_refused(steps: Any) -> None:
    with pytest.raises(UsageError, match="records no step"):
        profile(steps)


def test_a_file_in_place_of_the_folder_is_refused_at_once(folder: Path) -> None:
    (folder / "profiles").touch()
    with pytest.raises(UsageError, match="no folder"):
        profile(1)


def test_an_error_passes_and_leaves_nothing(folder: Path) -> None:
    call = nn.Module.__call__
    with pytest.raises(ZeroDivisionError), profile((0, 1, 5)) as profiler:
        train(profiler.step, 3)
        raise ZeroDivisionError
    assert profiler.report is None and not list(folder.iterdir())
    assert nn.Module.__call__ is call and _get_current_function_mode() is None


def test_a_mode_of_the_user_that_is_still_entered_stays() -> None:
    with profile((0, 1, 1)) as profiler:
        with torch.device("meta"):
            for _ in range(3):
                torch.ones(2).exp()
                profiler.step()
            assert torch.ones(2).is_meta
        assert not torch.ones(2).is_meta
    assert profiler.report is not None and _get_current_function_mode() is None


def test_a_line_of_a_package_is_named_with_the_users_own(folder: Path) -> None:
    package = folder / "site-packages" / "layers_of_somebody.py"
    package.parent.mkdir()
    package.write_text("import torch\n\ndef layer(x):\n    return (x @ x).relu()\n")
    sys.path.insert(0, str(package.parent))
    from layers_of_somebody import layer  # type: ignore[import-not-found]

    with profile((0, 1, 1)) as profiler:
        for _ in range(2):
            layer(torch.ones(300, 300))  # own line
            profiler.step()
    assert profiler.report is not None
    assert profiler.report.lines[0].name.endswith(
        f"layers_of_somebody.py:4 from {line('own line')}"
    )


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.pow(3)  # cube

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradient * 3 * x.pow(2)  # cube's backward


def test_the_backward_of_a_function_of_ones_own_has_its_lines() -> None:
    with profile((0, 1, 1)) as profiler:
        for _ in range(2):
            Cube.apply(torch.ones(9, requires_grad=True)).sum().backward()
            profiler.step()
    assert profiler.report is not None
    assert row(profiler.report.lines, line("cube")).calls == 1
    assert row(profiler.report.lines, line("cube's backward")).calls == 3


def test_a_compiled_model_keeps_its_one_graph() -> None:
    counters = __import__("torch._dynamo.utils", fromlist=["counters"]).counters
    counters.clear()
    compiled = torch.compile(nn.Sequential(nn.Linear(16, 8), nn.ReLU()), backend="eager")
    report, _ = profiled(net=compiled)
    assert not counters["graph_break"]
    assert report.lines


@pytest.mark.gpu
@needs_gpu
def test_kernels_count_for_the_line_that_launched_them() -> None:
    square = torch.randn(2000, 2000, device="cuda", requires_grad=True)
    with profile((0, 1, 2)) as profiler:
        for _ in range(3):
            square.mm(square).mean().backward()  # on the device
            profiler.step()
    assert profiler.report is not None
    first = profiler.report.lines[0]
    assert first.name == line("on the device")
    assert first.device_seconds > first.device_backward_seconds > 0
