"""Mode `nan`, in this process: the line of each birth, and what is no bug."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_in import run_in
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from ptools.debug.findings import Finding
from ptools.debug.mode import Log
from ptools.debug.nan.mode import Nan
from ptools.program.clock import Clock
from ptools.program.modules import Modules


def traced(program: Callable[[], object], keep_going: bool = False, **when: int) -> Log:
    """What mode `nan` logs of a program."""
    return run_in(Nan(Log(keep_going), Clock(), Modules(), **when), program)


def found(program: Callable[[], object], **when: int) -> Finding:
    """The one finding in a program."""
    log = traced(program, **when)
    assert len(log.findings) == 1, (log.findings, log.notes)
    return log.findings[0]


def line(mark: str) -> int:
    """The number of the line in this file that carries a mark."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = [number for number, text in enumerate(lines, 1) if text.endswith(f"# {mark}")]
    return number


def lines(finding: Finding, role: str) -> list[int]:
    """The lines of a role."""
    return [place.line for name, place in finding.places if name == role]


def leaf(*values: float) -> torch.Tensor:
    """A tensor that wants a gradient."""
    return torch.tensor(values, requires_grad=True)


def test_a_forward_operation_is_named_with_its_line_inputs_and_module() -> None:
    class Head(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / x.sum()  # zero by zero

    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Head())
    nn.init.constant_(model[0].bias, -10.0)
    finding = found(lambda: model(torch.ones(1, 2)).log().sum().backward())
    assert (finding.kind, finding.op) == ("nan", "aten::div")
    assert lines(finding, "made") == [line("zero by zero")]
    assert finding.places[0][1].module == "Sequential.2"
    assert finding.places[0][1].part == "x / x.sum()"
    output, divided, divisor = finding.tensors
    assert (output.name, output.nans, output.where) == ("output", 2, (0, 0))
    assert (divided.name, divided.zeros, divided.max) == ("self", 2, 0.0)
    assert (divisor.name, divisor.shape, divisor.zeros) == ("other", (), 1)
    assert "denominator" in finding.advice


def test_a_backward_operation_is_named_with_the_forward_line_and_the_birth_of_the_infinity() -> (
    None
):
    weights = leaf(0.0, 0.0)
    optimizer = torch.optim.SGD([weights], 0.1)

    def step() -> None:
        squares = weights**2  # squares
        norm = squares.sum().sqrt()  # root
        norm.backward()  # back
        optimizer.step()

    finding = found(step)
    assert lines(finding, "made") == [line("squares")]
    assert lines(finding, "born") == [line("root")]
    assert lines(finding, "backward") == [line("back")]
    assert any("PowBackward0" in fact for fact in finding.facts)


def test_a_functions_own_backward_is_named_with_the_line_that_applied_it() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x * 2

        @staticmethod
        def backward(ctx, gradient):  # type: ignore[no-untyped-def]
            return gradient * 0 / 0  # own backward

    weights = leaf(1.0)
    optimizer = torch.optim.SGD([weights], 0.1)

    def step() -> None:
        y = Broken.apply(weights)  # applied
        y.sum().backward()
        optimizer.step()

    finding = found(step)
    assert lines(finding, "made") == [line("own backward")]
    assert lines(finding, "forward") == [line("applied")]


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_checkpoint_computes_again_is_a_forward(reentrant: bool) -> None:
    weights = leaf(0.0, 1.0)
    optimizer = torch.optim.SGD([weights], 0.1)

    def block(x: torch.Tensor) -> torch.Tensor:
        return x.square().sqrt()  # in a checkpoint

    def step() -> None:
        checkpoint(block, weights, use_reentrant=reentrant).sum().backward()
        optimizer.step()

    assert lines(found(step), "made") == [line("in a checkpoint")]


def test_an_operation_in_place_and_on_a_view_has_its_forward_line() -> None:
    weights = leaf(0.0, 4.0)
    optimizer = torch.optim.SGD([weights], 0.1)

    def step() -> None:
        x = weights * 0
        x[:1].sqrt_()  # on a view
        x.sum().backward()
        optimizer.step()

    finding = found(step)
    assert lines(finding, "born") == [line("on a view")]


def test_the_first_of_several_births_on_the_way_to_the_loss_is_told() -> None:
    def program() -> None:
        aside = torch.zeros(1) / 0 * torch.zeros(1)
        first = leaf(-1.0).sqrt()  # first
        second = leaf(-1.0).log()
        assert aside.isnan()
        (second + first).sum().backward()

    assert lines(found(program), "made") == [line("first")]


def test_infinity_that_ends_as_infinity_is_told_where_it_was_born() -> None:
    def program() -> None:
        large = (leaf(100.0) * 2).exp()  # overflows
        (large + 1).sum().backward()

    finding = found(program)
    assert (finding.kind, lines(finding, "made")) == ("inf", [line("overflows")])


def test_infinity_and_nan_that_do_not_come_to_a_loss_are_no_finding() -> None:
    def program() -> None:
        x = leaf(0.0, 1.0)
        scores = x.masked_fill(x == 0, -math.inf).softmax(0)
        marked = torch.tensor([math.nan, 1.0])
        kept = torch.where(marked.isnan(), 0.0, marked) + marked.nan_to_num()
        (scores * kept).sum().backward()
        torch.zeros(1).log().exp()
        torch.finfo(torch.float16).min * torch.ones(2, dtype=torch.float16)

    log = traced(program)
    assert not log.findings


def test_a_nan_kept_by_the_forward_and_masked_comes_back_in_the_backward() -> None:
    weights = leaf(1.0, 2.0)
    optimizer = torch.optim.SGD([weights], 0.1)

    def step() -> None:
        errors = (weights - torch.tensor([math.nan, 0.0])).square()  # comes back
        errors[1:].sum().backward()
        optimizer.step()

    finding = found(step)
    assert lines(finding, "made") == [line("comes back")]
    assert "mask before it is made" in finding.advice


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_is_not_finite_is_named(workers: int) -> None:
    inputs = torch.ones(12, 3)
    inputs[7, 1] = math.nan
    model = nn.Linear(3, 1)

    def program() -> None:
        data = TensorDataset(inputs, torch.ones(12))
        for x, y in DataLoader(data, batch_size=4, num_workers=workers):
            out = model(x)  # read
            (out.sum() + y.sum()).backward()

    finding = found(program)
    assert lines(finding, "read") == [line("read")]
    assert any("sample 3 of batch[0]" in f and "number 7 of the" in f for f in finding.facts)
    assert (finding.tensors[0].nans, finding.tensors[0].where) == (1, (3, 1))


def test_memory_that_nothing_was_written_to_is_named() -> None:
    def program() -> None:
        buffer = torch.empty(3)  # taken as it came
        buffer.numpy()[:] = math.nan  # as it may well hold
        (leaf(1.0) * buffer).sum().backward()

    def filled() -> None:
        buffer = torch.empty(3)
        buffer.numpy()[:] = math.nan
        buffer.copy_(torch.ones(3))
        (leaf(1.0) * buffer).sum().backward()

    assert lines(found(program), "made") == [line("taken as it came")]
    assert not traced(filled).findings


def test_memory_that_was_written_over_is_no_longer_what_it_was() -> None:
    def program() -> None:
        x = torch.zeros(2) / 0
        x.zero_()
        x.div_(0.0)  # anew
        (leaf(1.0) * x).sum().backward()

    assert lines(found(program), "made") == [line("anew")]


def test_a_nan_in_a_loss_is_a_finding_under_a_scaler_too() -> None:
    scaler = torch.amp.GradScaler("cpu")
    assert found(lambda: scaler.scale(leaf(-1.0).sqrt().sum()).backward()).op == "aten::sqrt"
    assert not traced(lambda: scaler.scale(leaf(200.0).exp().sum()).backward()).findings


def test_an_optimizer_that_divides_by_zero_is_named_with_the_parameter() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), eps=0.0)

    def step() -> None:
        model(torch.zeros(1, 2)).sum().backward()
        optimizer.step()  # divides

    finding = found(step)
    assert lines(finding, "made") == [line("divides")]
    assert "Linear.weight" in " ".join(finding.facts)
    assert "eps" in finding.advice


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_every_floating_type_is_checked(kind: torch.dtype) -> None:
    def program() -> None:
        zero = torch.zeros(3, dtype=kind, requires_grad=True)
        (zero / zero).abs().sum().backward()

    assert found(program).op == "aten::div"


def test_large_sums_lists_and_sparse_and_empty_tensors_are_read_right() -> None:
    def fine() -> None:
        torch.full((4,), 60000.0, dtype=torch.float16) + 1
        torch.full((4,), 3e38) * 1.0
        torch.zeros(0).mul(2).sum()
        torch.ones(3, dtype=torch.int64).mul(2).bincount()
        torch.eye(3).to_sparse().mul(2).coalesce()
        torch._foreach_mul([torch.ones(2), torch.ones(3)], 2.0)

    def lists() -> None:
        torch._foreach_div_([torch.ones(2), torch.zeros(3)], 0.0)

    def sparse() -> None:
        torch.eye(3).to_sparse().mul(math.inf).mul(0.0)

    assert not traced(fine).findings
    assert found(lists).op == "aten::_foreach_div_"
    assert found(sparse).op == "aten::mul"


def test_gradients_that_overflow_under_a_scaler_are_the_plan() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=1000)

    def program() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            scaler.scale(model(torch.full((1, 2), 1e12)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()

    assert not traced(program).findings
    assert scaler.get_scale() < 2.0**100


def test_tracing_begins_at_a_step_and_tells_what_was_lost_before() -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def program() -> None:
        for step in range(6):
            loss = model(torch.ones(1, 1)).sum()
            if step == 2:
                loss = loss * math.nan
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    for when in ({"start": 5}, {"at_step": 5}):
        finding = found(program, **when)
        assert finding.kind == "nan-before"
        if "at_step" in when:
            assert "and 1 more were not finite" in finding.summary
            assert "begin earlier" in finding.advice
        assert "Linear.weight" in finding.summary
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert found(program, at_step=2).step == 2


def test_all_findings_are_collected_when_the_program_goes_on() -> None:
    def program() -> None:
        for _ in range(2):
            leaf(-1.0).sqrt().sum().backward()
            leaf(-1.0).log().sum().backward()

    assert [one.op for one in traced(program, keep_going=True).findings] == [
        "aten::sqrt",
        "aten::log",
    ]


def test_a_program_without_a_backward_is_judged_at_its_end() -> None:
    assert found(lambda: leaf(-1.0).sqrt()).op == "aten::sqrt"
    assert found(lambda: leaf(-1.0).sqrt().isnan().any()).op == "aten::sqrt"
    assert not traced(lambda: leaf(-1.0).sqrt().nan_to_num()).findings


def test_torch_func_and_losses_are_as_without_us() -> None:
    def program() -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        losses = []
        for _ in range(5):
            slopes = torch.func.vmap(torch.func.grad(lambda x: x.square().sum()))(torch.rand(4, 3))
            loss = model(slopes).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    ours: list[float] = []
    assert not traced(lambda: ours.extend(program())).findings
    assert ours == program()


class Halved(torch.autograd.Function):
    """A Function whose backward divides nothing by nothing."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 0 / (gradient * 0)


ADVISED = {
    "denominator": lambda: Halved.apply(leaf(1.0)).sum().backward(),
    "learning rate": lambda: (leaf(3e38, 3e38).mean() * 0.5).backward(),
    "eps inside": lambda: leaf(0.0).sqrt().sum().backward(),
    "masked everywhere": lambda: (
        (leaf(0.0, 0.0) + torch.tensor([-math.inf] * 2)).softmax(0).sum().backward()
    ),
    "mask the input": lambda: (
        torch.where((x := leaf(0.0, 1.0)) > 0, x.log(), torch.zeros(2)).sum().backward()
    ),
    "logarithm": lambda: leaf(0.0).log().sum().backward(),
    "too few": lambda: torch.std(leaf(1.0)).backward(),
    "the denominator from 0": lambda: (
        (leaf(1.0, -1.0) / torch.zeros(1)).softmax(0).sum().backward()
    ),
    "beyond 65504": lambda: (
        (x := leaf(300.0, 300.0).half().pow(2)).div(x.max()).float().sum().backward()
    ),
}


@pytest.mark.parametrize("words", ADVISED)
def test_the_advice_fits_what_was_done(words: str) -> None:
    assert words in found(ADVISED[words]).advice


def test_a_gradient_that_no_optimizer_uses_is_judged_at_the_end() -> None:
    bare = leaf(0.0)

    def program() -> None:
        bare.sqrt().mul(0).sum().backward()  # zero times an infinite slope
        assert bare.grad is not None
        bare.grad.nan_to_num_()

    assert traced(program).findings == []
    finding = found(lambda: leaf(0.0).sqrt().mul(0).sum().backward())
    assert (finding.kind, finding.op) == ("nan", "aten::div")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_infinity_in_a_batch_is_told_with_its_sample(workers: int) -> None:
    data = TensorDataset(torch.ones(8, 2))
    data.tensors[0][6, 1] = math.inf
    model = nn.Linear(2, 2)

    def program() -> None:
        for (x,) in DataLoader(data, batch_size=4, num_workers=workers):
            out = model(x)
            (out - out.mean()).sum().backward()

    finding = found(program)
    assert "batch" in finding.summary
    assert any("number 6 of the data set" in fact for fact in finding.facts)
    assert "look at this sample" in finding.advice


def test_a_batch_that_was_fetched_ahead_counts_from_where_it_is_read() -> None:
    data = TensorDataset(torch.ones(3, 2))
    data.tensors[0][2] = math.nan
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def program() -> None:
        for (x,) in list(DataLoader(data)):
            model(x).sum().backward()
            optimizer.step()

    assert found(program).step == 2


def test_the_line_of_an_infinity_is_told_as_a_person_knows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    big = leaf(1e30)
    finding = found(lambda: ((big * 1e30) - (big * 1e30)).sum().backward())
    assert any(f" at {Path(__file__).name}:" in fact for fact in finding.facts)
