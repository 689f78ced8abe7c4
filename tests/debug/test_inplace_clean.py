"""Programs that change tensors in place and are right: no finding, and the very same numbers."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ptools.debug.inplace.mode import Inplace
from ptools.debug.mode import Log, watching
from ptools.program.clock import Clock
from ptools.program.modules import Modules

Numbers = list[float]
Program = Callable[[], Numbers]


def inplace_relu_after_conv_and_norm() -> Numbers:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(2, 2, 3),
        nn.Dropout(0.5, inplace=True),
    )
    return trained(net, lambda: net(torch.randn(2, 1, 5, 5)).sum())


def two_forwards_through_batch_norm() -> Numbers:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    return trained(net, lambda: net(torch.randn(4, 3)).sum() * net(torch.randn(4, 3)).std())


def buffers_of_batch_norm_overwritten_between_forwards() -> Numbers:
    """As DistributedDataParallel does; in training nothing needs the running statistics."""
    net = nn.BatchNorm1d(3)

    def loss() -> Tensor:
        first = net(torch.randn(4, 3)).square().sum()
        for buffer in net.buffers():
            buffer.data.copy_(buffer * 0)
        return first + net(torch.randn(4, 3)).std()

    return trained(net, loss)


def batch_norm_in_eval() -> Numbers:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).eval())
    return trained(net, lambda: net(torch.randn(4, 3)).sum())


def moving_average_of_the_weights() -> Numbers:
    net, mean = nn.Linear(3, 1), nn.Linear(3, 1)

    def loss() -> Tensor:
        for slow, fast in zip(mean.parameters(), net.parameters(), strict=True):
            slow.data.mul_(0.9).add_(fast.data, alpha=0.1)
        with torch.no_grad():
            target = mean(torch.ones(2, 3))
        return (net(torch.ones(2, 3)) - target).square().sum()

    return trained(net, loss)


def weights_clipped_after_the_step() -> Numbers:
    net = nn.Linear(3, 1)

    def loss() -> Tensor:
        for weight in net.parameters():
            weight.data.clamp_(-0.1, 0.1)
        return net(torch.randn(2, 3)).sum()

    return trained(net, loss)


def weights_swapped_and_put_back() -> Numbers:
    """Values that are what they were when backward wants them are nobody's bug."""
    net = nn.Linear(3, 3)

    def loss() -> Tensor:
        value = net(net(torch.randn(2, 3))).sum()
        kept = net.weight.detach().clone()
        net.weight.data.zero_()
        net.weight.data.copy_(kept)
        return value

    return trained(net, loss)


def spectral_norms() -> Numbers:
    old = torch.nn.utils.spectral_norm(nn.Linear(3, 3))
    new = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    net = nn.Sequential(old, new)
    return trained(net, lambda: (net(torch.randn(2, 3)) + net(torch.randn(2, 3))).sum())


def checkpoints_of_both_kinds() -> Numbers:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True))

    def loss() -> Tensor:
        x = torch.randn(4, 3, requires_grad=True)
        x = checkpoint(net, x, use_reentrant=True)
        return checkpoint(net, x, use_reentrant=False).sum()

    return trained(net, loss)


def scaled_half_precision() -> Numbers:
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        with torch.autocast("cpu", torch.bfloat16):
            loss = (net(torch.randn(2, 3)) + net(torch.randn(2, 3))).sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


def long_short_term_memory() -> Numbers:
    net = nn.LSTM(3, 4, num_layers=2, batch_first=True, dropout=0.2)
    state: list[tuple[Tensor, ...]] = []

    def loss() -> Tensor:
        out, new = net(torch.randn(2, 5, 3), *state[-1:])
        state.append(tuple(one.detach() for one in new))
        return out.sum()

    return trained(net, loss)


def attention_with_masks_filled_in_place() -> Numbers:
    net = nn.MultiheadAttention(4, 2, batch_first=True)

    def loss() -> Tensor:
        mask = torch.zeros(3, 3).masked_fill_(torch.ones(3, 3).triu(1).bool(), -torch.inf)
        x = torch.randn(2, 3, 4)
        return net(x, x, x, attn_mask=mask)[0].sum()

    return trained(net, loss)


def results_collected_in_one_tensor() -> Numbers:
    net = nn.Linear(3, 3)

    def loss() -> Tensor:
        out = torch.zeros(4, 3)
        for i in range(4):
            out[i] = net(torch.randn(3)).tanh()
        out += 1
        return out.sum()

    return trained(net, loss)


def gradient_penalty() -> Numbers:
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))

    def loss() -> Tensor:
        x = torch.randn(2, 3, requires_grad=True)
        (gradient,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return (gradient.norm(dim=1) - 1).square().mean()

    return trained(net, loss)


def functional_transforms() -> Numbers:
    def squares(x: Tensor) -> Tensor:
        return (x * x).sum()

    x = torch.randn(4, 3)
    gradient = torch.func.vmap(torch.func.grad(squares))(x)
    hessian = torch.func.hessian(squares)(x[0])
    return [gradient.sum().item(), hessian.sum().item()]


def closures_of_lbfgs() -> Numbers:
    net = nn.Linear(3, 1)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=4)
    x, losses = torch.randn(5, 3), []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (net(x) - 1).square().mean()
        loss.backward()
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    return losses


def marked_dirty() -> Numbers:
    class AddOne(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
            ctx.mark_dirty(x.add_(1))
            ctx.save_for_backward(x)
            return x

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
            return gradient * ctx.saved_tensors[0]

    net = nn.Linear(3, 3)
    return trained(net, lambda: AddOne.apply(net(torch.randn(2, 3))).sum())  # type: ignore[no-untyped-call]


def sparse_rows_of_an_embedding() -> Numbers:
    net = nn.Embedding(5, 3, sparse=True)
    return trained(net, lambda: F.relu(net(torch.tensor([1, 1, 2]))).square().sum())


def own_hooks_on_saved_tensors() -> Numbers:
    net = nn.Linear(3, 3)

    def loss() -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            x = torch.randn(2, 3, requires_grad=True) * 1
            y = net(x).sigmoid()
        y.detach().mul_(2)  # the hooks have kept a copy
        return y.sum()

    return trained(net, loss)


def trained(net: nn.Module, loss_of: Callable[[], Tensor]) -> Numbers:
    sparse = any(isinstance(module, nn.Embedding) for module in net.modules())
    optimizer = (torch.optim.SGD if sparse else torch.optim.Adam)(net.parameters(), 0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "program",
    [
        inplace_relu_after_conv_and_norm,
        two_forwards_through_batch_norm,
        buffers_of_batch_norm_overwritten_between_forwards,
        batch_norm_in_eval,
        moving_average_of_the_weights,
        weights_clipped_after_the_step,
        weights_swapped_and_put_back,
        spectral_norms,
        checkpoints_of_both_kinds,
        scaled_half_precision,
        long_short_term_memory,
        attention_with_masks_filled_in_place,
        results_collected_in_one_tensor,
        gradient_penalty,
        functional_transforms,
        closures_of_lbfgs,
        marked_dirty,
        sparse_rows_of_an_embedding,
        own_hooks_on_saved_tensors,
    ],
)
def test_what_is_right_is_left_alone_and_counts_the_same(program: Program) -> None:
    torch.manual_seed(0)
    plain = program()
    torch.manual_seed(0)
    log = Log()
    with watching(Inplace(log, Clock(), Modules())):
        watched = program()
    assert log.findings == []
    assert watched == plain


def test_what_autograd_saves_is_freed_as_in_a_plain_run() -> None:
    def alive_after(watched: bool) -> list[bool]:
        mode = Inplace(Log(), Clock(), Modules())
        x = torch.randn(3, requires_grad=True)
        gc.disable()
        try:
            with watching(mode) if watched else torch.enable_grad():
                outputs = [x.exp(), x.sigmoid() * x.tanh(), torch.softmax(x * 2, 0)]
                outputs[0] += 1  # a node that holds its own output, now in another version
                outputs[1].sum().backward()
                nodes = [weakref.ref(one) for one in outputs]
                del outputs
                return [node() is not None for node in nodes]
        finally:
            gc.enable()

    assert alive_after(watched=True) == alive_after(watched=False) == [False] * 3


def test_a_training_holds_no_more_memory_from_step_to_step() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 1), nn.Softmax(0))
    mode = Inplace(Log(), Clock(), Modules())

    def tensors() -> int:
        return sum(type(one) is Tensor for one in gc.get_objects())

    counts = []
    with watching(mode):
        for _ in range(4):
            net(torch.randn(4, 8)).sum().backward()
            counts.append(tensors())
            net(torch.randn(4, 8)).sum()  # a graph that no backward goes through
            counts.append(tensors())
    assert len(set(counts[2:])) == 1
    assert not mode._ledger.live
