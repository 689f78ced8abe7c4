"""Activation checkpointing: the same numbers as without it, out of less memory."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrizations import spectral_norm

from ptools.errors import UsageError
from ptools.train.memory.checkpointing import checkpoint_modules, checkpoint_sequential_sqrt


class Block(nn.Module):
    """A batch norm, a dropout and a residual; takes a keyword."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return x + self.drop(torch.sigmoid(self.norm(self.fc(x)))) * scale


class Net(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, scale=0.5)
        return x


class Codebook(nn.Module):
    """Its forward reads a buffer that it replaces, and one that it writes through no version."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("variance", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        y = nn.functional.batch_norm(x, self.mean, self.variance, training=True)
        return y * (1 + self.average) * (1 + self.mean.clone())


def sequential(count: int = 9) -> nn.Sequential:
    return nn.Sequential(*(Block() for _ in range(count)))


def outcome(model: nn.Module, steps: int = 2, amp: bool = False) -> dict[str, torch.Tensor]:
    """All numbers of a short training: outputs, gradients, parameters, buffers."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = {}
    for step in range(steps):
        x = torch.randn(6, 8, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            out = model(x)
        optimizer.zero_grad()
        out.float().square().sum().backward()
        found[f"{step} out"], found[f"{step} input"] = out.detach(), x.grad
        found |= {f"{step} {name}": one.grad for name, one in model.named_parameters()}
        optimizer.step()
    return copy.deepcopy(found | dict(model.state_dict()) | {"rng": torch.get_rng_state()})


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def pair(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = build()
    return model, copy.deepcopy(model)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("segments", [None, 1, 4, 9])
def test_a_sequential_in_segments_trains_to_the_same_bits(segments: int | None, amp: bool) -> None:
    plain, other = pair(sequential)
    given = checkpoint_sequential_sqrt(other, segments)
    assert given is other
    assert_same(outcome(plain, amp=amp), outcome(other, amp=amp))


@pytest.mark.parametrize("amp", [False, True])
def test_checkpointed_blocks_train_to_the_same_bits(amp: bool) -> None:
    plain, other = pair(Net)
    assert_same(outcome(plain, amp=amp), outcome(checkpoint_modules(other, Block), amp=amp))


def test_torchs_own_checkpoint_updates_a_batch_norm_twice() -> None:
    """What the tests above would miss if batch norms were no trap."""
    from torch.utils.checkpoint import checkpoint

    block = Block()
    checkpoint(block, torch.randn(6, 8), use_reentrant=False).sum().backward()
    assert block.norm.num_batches_tracked == 2


@pytest.mark.parametrize(
    "build",
    [
        Codebook,
        lambda: spectral_norm(nn.Linear(8, 8)),
        lambda: nn.BatchNorm1d(8, momentum=None),
        lambda: nn.Sequential(Block(), nn.Sequential(Block(), nn.BatchNorm1d(8))),
    ],
    ids=["codebook", "spectral norm", "cumulative batch norm", "one within another"],
)
def test_a_forward_that_writes_to_its_buffers_runs_again_on_the_old_ones(
    build: Callable[[], nn.Module],
) -> None:
    plain, other = pair(lambda: nn.Sequential(nn.Linear(8, 8), build(), nn.Linear(8, 8)))
    checkpoint_modules(other[1], type(other[1]))  # type: ignore[index]
    for module in [one for one in other.modules() if isinstance(one, Block)]:
        checkpoint_modules(module, Block)
    assert_same(outcome(plain), outcome(other))


def test_a_graph_that_is_kept_gives_the_same_gradients_again() -> None:
    model = checkpoint_modules(nn.Sequential(nn.Linear(8, 8), Codebook()), Codebook)
    loss = model(torch.randn(6, 8)).square().sum()
    (first,) = torch.autograd.grad(loss, model[0].weight, retain_graph=True)
    (second,) = torch.autograd.grad(loss, model[0].weight)
    assert torch.equal(first, second)


def test_names_copies_and_pickles_stay_what_they_were() -> None:
    plain, other = pair(Net)
    checkpoint_modules(other, Block)
    assert list(plain.state_dict()) == list(other.state_dict())
    assert isinstance(other.blocks[0], Block)
    assert "CheckpointedBlock" in repr(other)
    copied = copy.deepcopy(other)
    file = io.BytesIO()
    torch.save(other, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    wanted = outcome(plain)
    for model in (copied, loaded):
        assert type(model.blocks[0]) is type(other.blocks[0])
        assert_same(wanted, outcome(model))
    assert_same(wanted, outcome(other))  # the copies had tensors of their own


def test_to_checkpoint_twice_is_to_checkpoint_once() -> None:
    model = checkpoint_modules(checkpoint_modules(Net(), Block), Block)
    calls = []
    model.blocks[0].fc.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(6, 8)).sum().backward()
    assert len(calls) == 2


def test_an_evaluation_runs_each_block_once() -> None:
    model = checkpoint_modules(Net(), Block).eval()
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(torch.randn(6, 8))
    assert len(calls) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 16])
def test_every_module_of_a_sequential_runs_once_in_the_forward(count: int) -> None:
    model = checkpoint_sequential_sqrt(sequential(count))
    calls = []
    for number, block in enumerate(model):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    model(torch.randn(6, 8))
    assert calls == list(range(count))


@pytest.mark.slow
def test_a_compiled_model_is_checkpointed_too() -> None:
    plain, other = pair(lambda: nn.Sequential(nn.Linear(8, 8), Block(), Block()))
    for block in (plain[1], plain[2], other[1], other[2]):  # type: ignore[index]
        block.drop.p = 0.0  # which a compiler draws otherwise
    compiled = torch.compile(checkpoint_modules(other, Block), backend="aot_eager")
    wanted, found = outcome(plain), outcome(compiled)  # type: ignore[arg-type]
    found = {name.replace("_orig_mod.", ""): value for name, value in found.items()}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("unused", [False, True])
def test_ddp_gives_the_same_bits(group: None, unused: bool) -> None:
    plain, other = pair(Net)
    checkpoint_modules(other, Block)
    wrapped = [
        DistributedDataParallel(one, find_unused_parameters=unused) for one in (plain, other)
    ]
    assert_same(*map(outcome, wrapped))


def peak(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes at the peak of a training step, by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        model(x).sum().backward()
    events = [one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_memory_grows_as_the_square_root_of_the_number_of_blocks() -> None:
    def deep(count: int) -> nn.Sequential:
        blocks = (nn.Sequential(nn.Linear(16, 16), nn.Sigmoid()) for _ in range(count))
        return nn.Sequential(*blocks)

    x = torch.randn(1024, 16)
    plain = [peak(deep(count), x) for count in (4, 64)]
    saved = [peak(checkpoint_sequential_sqrt(deep(count)), x) for count in (4, 64)]
    assert plain[1] / plain[0] > 10
    assert saved[1] / saved[0] < 5  # sqrt(64 / 4) = 4
    assert saved[1] < plain[1] / 3


def test_what_cannot_be_checkpointed_is_refused() -> None:
    class Other(nn.Sequential):
        def forward(self, x: torch.Tensor, y: Any = None) -> torch.Tensor:
            return x

    with pytest.raises(UsageError, match="has no module of type Conv2d, LSTM"):
        checkpoint_modules(Net(), (nn.Conv2d, nn.LSTM))
    with pytest.raises(UsageError, match="Other does not call its modules one after the other"):
        checkpoint_sequential_sqrt(Other(nn.ReLU()))
    with pytest.raises(UsageError, match="10 segments of 9 modules"):
        checkpoint_sequential_sqrt(sequential(), 10)
    scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 8)))
    with pytest.raises(UsageError, match="was scripted"):
        checkpoint_modules(nn.Sequential(scripted), torch.jit.ScriptModule)
