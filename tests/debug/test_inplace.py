"""Mode inplace finds both lines of every class of in-place bug; truth: the marked lines."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptools.debug.findings import Finding
from ptools.debug.inplace.mode import Inplace
from ptools.debug.mode import Log, Stop, watching
from ptools.program.clock import Clock
from ptools.program.modules import Modules

Program = Callable[[], object]


def found_in(program: Program) -> list[Finding]:
    log = Log()
    mode = Inplace(log, Clock(), Modules())
    torch.manual_seed(0)
    with watching(mode), contextlib.suppress(Stop):
        program()
    return log.findings


def marked(program: Program, role: str) -> set[int]:
    lines, first = inspect.getsourcelines(program)
    return {first + i for i, line in enumerate(lines) if f"<- {role}" in line}


def lines(finding: Finding, role: str) -> set[int]:
    return {place.line for name, place in finding.places if name == role}


def relu_after_sigmoid() -> None:
    net = nn.ModuleList([nn.Linear(3, 3), nn.Sigmoid(), nn.ReLU(inplace=True)])
    h = net[0](torch.randn(2, 3))
    h = net[1](h)  # <- saved
    h = net[2](h)  # <- changed
    h.sum().backward()


def residual_added_in_place() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1)
    h = torch.randn(1, 2, 4, 4, requires_grad=True) * 1
    y = conv(h)  # <- saved
    h += y  # <- changed
    h.sum().backward()


def slice_assigned() -> None:
    x = torch.randn(3, 3, requires_grad=True)
    s = x.exp()  # <- saved
    s[:, 0] = 0  # <- changed
    s.sum().backward()


def step_between_two_backwards() -> None:
    critic = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = torch.optim.Adam(critic.parameters())
    fake = torch.randn(2, 3, requires_grad=True)
    loss = critic(fake).mean()  # <- saved
    loss.backward(retain_graph=True)
    optimizer.step()  # <- changed
    (-loss).backward()


def fused_step_between_two_backwards() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    loss = net(torch.randn(2, 3)).mean()  # <- saved
    loss.backward(retain_graph=True)
    optimizer.step()  # <- changed
    loss.backward()


def hidden_state_carried_on() -> None:
    cell = nn.RNNCell(2, 3)
    optimizer = torch.optim.SGD(cell.parameters(), 0.1)
    h = torch.zeros(1, 3)
    for _ in range(3):
        h = cell(torch.randn(1, 2), h)  # <- saved
        h.sum().backward(retain_graph=True)
        optimizer.step()  # <- changed


def codebook_updated_in_forward() -> None:
    codes = torch.randn(4, 3)
    x = torch.randn(2, 3, requires_grad=True)
    y = x @ codes.t()  # <- saved
    codes.mul_(0.9)  # <- changed
    codes.index_add_(0, torch.tensor([1, 2]), torch.ones(2, 3))  # <- changed
    y.sum().backward()


def buffer_used_twice() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            self.scale += 1  # <- changed
            return x * self.scale  # <- saved

    net = Net()
    x = torch.randn(3, requires_grad=True)
    (net(x) + net(x)).sum().backward()


def preallocated_scan() -> None:
    a = torch.rand(3, requires_grad=True)
    states = torch.ones(4, 3)
    for t in range(1, 4):
        states[t] = states[t - 1].clone() * a  # not this line: a clone is saved
    out = states * a  # <- saved
    states[0] = 0  # <- changed
    out.sum().backward()


def written_through_data() -> None:
    w = torch.ones(3, requires_grad=True)
    x = torch.ones(3, requires_grad=True)
    y = w * x  # <- saved
    w.data.mul_(2)  # <- changed
    y.sum().backward()


def written_through_a_detached_alias() -> None:
    x = torch.randn(4, requires_grad=True)
    y = torch.tanh(x)  # <- saved
    seen = y.detach()
    seen.clamp_(-0.1, 0.1)  # <- changed
    y.sum().backward()


def memory_swapped_by_set() -> None:
    w = torch.ones(3)
    x = torch.ones(3, requires_grad=True)
    y = w * x  # <- saved
    with torch.no_grad():
        w.set_(torch.zeros(3))  # <- changed
    y.sum().backward()


def numpy_writes_the_batch() -> None:
    array = torch.ones(2, 3).numpy()
    layer = nn.Linear(3, 1)
    loss = layer(torch.from_numpy(array)).sum()  # <- saved
    array[:] = 7
    loss.backward()


def embedding_with_max_norm() -> None:
    table = nn.Embedding(5, 3, max_norm=0.1)
    projected = table.weight @ torch.randn(3, 2, requires_grad=True)  # <- saved
    looked_up = table(torch.tensor([1, 2]))  # <- changed
    (projected.sum() + looked_up.sum()).backward()


def put_into_a_saved_tensor() -> None:
    x = torch.randn(4, requires_grad=True)
    y = x.exp()  # <- saved
    y.index_put_((torch.tensor([0]),), torch.tensor(1.0))  # <- changed
    y.sum().backward()


def scattered_into_a_saved_tensor() -> None:
    x = torch.randn(4, requires_grad=True)
    y = x.sqrt()  # <- saved
    y.scatter_(0, torch.tensor([0, 1]), 1.0)  # <- changed
    y.sum().backward()


def filled_by_a_mask() -> None:
    x = torch.randn(4, requires_grad=True)
    y = torch.softmax(x, 0)  # <- saved
    y.masked_fill_(y > 0.2, 0)  # <- changed
    y.sum().backward()


def given_as_out() -> None:
    x = torch.randn(4, requires_grad=True)
    scratch = torch.ones(4)
    y = x * scratch  # <- saved
    torch.add(torch.ones(4), 1, out=scratch)  # <- changed
    y.sum().backward()


def weight_clamped_too_early() -> None:
    layer = nn.Linear(3, 3)
    net = nn.Sequential(nn.Linear(2, 3), layer)
    loss = net(torch.randn(1, 2)).sum()  # <- saved
    with torch.no_grad():
        layer.weight.clamp_(-0.01, 0.01)  # <- changed
    loss.backward()


def many_weights_at_once() -> None:
    weights = [torch.ones(2, requires_grad=True) for _ in range(3)]
    x = torch.ones(2, requires_grad=True)
    loss = (weights[1] * x).sum()  # <- saved
    with torch.no_grad():
        torch._foreach_mul_(weights, 0.5)  # <- changed
    loss.backward()


def saved_by_a_custom_function() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
            (x,) = ctx.saved_tensors
            return 2 * x * gradient

    x = torch.randn(3, requires_grad=True) + 1
    y = Square.apply(x)  # <- saved
    x.zero_()  # <- changed
    y.sum().backward()


def dropout_in_place() -> None:
    x = torch.randn(4, requires_grad=True)
    y = x.tanh()  # <- saved
    F.dropout(y, 0.5, inplace=True)  # <- changed
    y.sum().backward()


def double_backward() -> None:
    x = torch.randn(4, requires_grad=True)
    y = (x.sin() * x).sum()
    (gradient,) = torch.autograd.grad(y, x, create_graph=True)  # <- saved
    with torch.no_grad():
        x.add_(1)  # <- changed
    gradient.sum().backward()


SEEN = [
    relu_after_sigmoid,
    residual_added_in_place,
    slice_assigned,
    step_between_two_backwards,
    hidden_state_carried_on,
    codebook_updated_in_forward,
    buffer_used_twice,
    preallocated_scan,
    memory_swapped_by_set,
    written_through_a_detached_alias,
    embedding_with_max_norm,
    put_into_a_saved_tensor,
    scattered_into_a_saved_tensor,
    filled_by_a_mask,
    given_as_out,
    weight_clamped_too_early,
    many_weights_at_once,
    saved_by_a_custom_function,
    dropout_in_place,
    double_backward,
]
HIDDEN = [
    written_through_data,
    numpy_writes_the_batch,
    fused_step_between_two_backwards,
]


@pytest.mark.parametrize("program", SEEN)
def test_both_lines_of_an_error_of_torchs_are_named(program: Program) -> None:
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        program()
    (finding,) = found_in(program)
    assert finding.kind == "inplace"
    assert lines(finding, "saved") == marked(program, "saved")
    assert lines(finding, "changed") == marked(program, "changed")
    assert finding.advice


@pytest.mark.parametrize("program", HIDDEN)
def test_both_lines_of_a_change_that_torch_misses_are_named(program: Program) -> None:
    program()  # torch says nothing
    (finding,) = found_in(program)
    assert finding.kind == "inplace-hidden"
    assert "silently wrong" in finding.summary
    assert lines(finding, "saved") == marked(program, "saved")
    assert lines(finding, "changed") == marked(program, "changed")


def test_a_write_of_another_thread_is_named() -> None:
    def program() -> None:
        x = torch.randn(3, requires_grad=True)
        scale = torch.ones(3)
        y = x * scale  # <- saved

        def write() -> None:
            scale.add_(1)  # <- changed

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        y.sum().backward()

    (finding,) = found_in(program)
    assert lines(finding, "saved") == marked(program, "saved")
    assert lines(finding, "changed") == marked(program, "changed")


def hidden_state_of_the_last_step() -> None:
    cell = nn.GRUCell(2, 3)
    h = torch.zeros(1, 3)
    for _ in range(2):
        h = cell(torch.randn(1, 2), h)  # <- kept
        h.sum().backward()  # <- first  # <- again


def one_encoding_for_two_losses() -> None:
    encoder, head = nn.Linear(3, 3), nn.Linear(3, 1)
    code = encoder(torch.randn(2, 3)).tanh()  # <- kept
    head(code).sum().backward()  # <- first
    torch.autograd.grad((head(code) ** 2).sum(), [encoder.weight])  # <- again


@pytest.mark.parametrize("program", [hidden_state_of_the_last_step, one_encoding_for_two_losses])
def test_a_second_backward_is_told_with_the_first_and_with_what_was_kept(program: Program) -> None:
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        program()
    (finding,) = found_in(program)
    assert finding.kind == "backward-twice"
    for role in ("kept", "first", "again"):
        assert lines(finding, role) == marked(program, role)


def test_all_bugs_are_collected_when_the_program_goes_on() -> None:
    log = Log(keep_going=True)
    with watching(Inplace(log, Clock(), Modules())):
        slice_assigned()
        written_through_data()
        filled_by_a_mask()
    assert [one.kind for one in log.findings] == ["inplace", "inplace-hidden", "inplace"]


def test_what_was_switched_on_is_off_again() -> None:
    before = torch.autograd.backward, torch.autograd.grad, threading.Thread.start
    disable = torch._C._autograd._saved_tensors_hooks_disable
    relu_after_sigmoid_found = found_in(relu_after_sigmoid)
    assert relu_after_sigmoid_found
    assert before == (torch.autograd.backward, torch.autograd.grad, threading.Thread.start)
    assert torch._C._autograd._saved_tensors_hooks_disable is disable
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def test_the_finding_names_modules_parameters_and_the_optimizer() -> None:
    (finding,) = found_in(step_between_two_backwards)
    assert finding.summary.startswith("Adam's step changed Sequential.2.weight in place")
    (finding,) = found_in(relu_after_sigmoid)
    saved, changed = finding.place("saved"), finding.place("changed")
    assert saved is not None and saved.module == "Sigmoid"
    assert changed is not None and changed.module == "ReLU"
    assert finding.op == "aten::relu_"


def test_a_write_beside_the_saved_values_is_told_as_such() -> None:
    def program() -> None:
        x = torch.randn(2, 3)
        y = torch.randn(3, requires_grad=True) * x[0]
        x[1] = 0
        y.sum().backward()

    (finding,) = found_in(program)
    assert any("are what they were" in fact for fact in finding.facts)
