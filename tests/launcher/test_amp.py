import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptools.errors import UsageError
from ptools.launcher import inject
from ptools.launcher.amp import amp_environment, check_inject


@pytest.fixture
def injected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Injection in this process; gives how many calls it has been entered for."""
    monkeypatch.setattr(nn.Module, "__call__", nn.Module.__call__)
    monkeypatch.setenv("PTOOLS_AMP_INJECT", "1")
    before = inject.count()
    inject.install()
    yield lambda: inject.count() - before
    torch.compiler.reset()


def by_hand() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return x, (x.mean((1, 2, 3)) > 0).long() + 2 * (x[:, 0].std((1, 2)) > 1).long()


def loss_in_float32(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.float(), y)


def train(
    how: Callable[[], AbstractContextManager[Any]] = nullcontext,
    wrap: Callable[[nn.Module], Any] = lambda net: net,
    loss_of: Callable[[Tensor, Tensor], Tensor] = loss_in_float32,
    steps: int = 30,
) -> list[float]:
    """The losses of a small training with `how` around the call of the model."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    model, losses = wrap(net), []
    x, y = data()
    for _ in range(steps):
        optimizer.zero_grad()
        with how():
            out = model(x)
        loss = loss_of(out, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


EXPECTED: dict[str, list[float]] = {}


@pytest.fixture(autouse=True, scope="module")
def trained_by_hand() -> None:
    """Before any injection."""
    EXPECTED["float32"] = train()
    EXPECTED["by hand"] = train(by_hand)


@pytest.mark.parametrize(
    ("name", "ours", "accelerate", "fabric"),
    [
        ("bf16", "bf16", "bf16", "bf16-mixed"),
        ("fp16", "fp16", "fp16", "16-mixed"),
        ("off", "off", "no", "32-true"),
    ],
)
def test_each_library_gets_its_own_spelling(
    name: str, ours: str, accelerate: str, fabric: str
) -> None:
    variables, note = amp_environment(name)
    assert variables == {
        "PTOOLS_AMP": ours,
        "ACCELERATE_MIXED_PRECISION": accelerate,
        "LT_PRECISION": fabric,
    }
    assert note is None


@pytest.mark.parametrize(
    ("level", "meant"), [("O0", "off"), ("O1", "fp16"), ("O2", "fp16"), ("O3", "fp16")]
)
def test_levels_of_apex_are_explained(level: str, meant: str) -> None:
    variables, note = amp_environment(level)
    assert variables == amp_environment(meant)[0]
    assert note is not None and f"{level} is --amp {meant}" in note


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("bf61", "bf16"),
        ("bfloat16", "bf16"),
        ("BF16", "bf16"),
        ("16-mixed", "fp16"),
        ("no", "off"),
        ("o1", "O1"),
        ("01", "O1"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        amp_environment(name)
    assert caught.value.hint == f"did you mean {near}?"


@pytest.mark.parametrize("name", ["", "fast", "O9"])
def test_a_name_like_none_is_refused_with_all_names(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        amp_environment(name)
    assert "bf16, fp16, off" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["fp16", "O1", "O2"])
def test_fp16_is_not_injected_and_the_reason_is_said(name: str) -> None:
    with pytest.raises(UsageError, match="needs a GradScaler around backward, clipping and step"):
        check_inject(name)


def test_only_bf16_is_injected() -> None:
    check_inject("bf16")
    with pytest.raises(UsageError, match="nothing to inject"):
        check_inject("off")
    with pytest.raises(UsageError, match="does not know"):
        check_inject("bf17")


def test_injection_trains_bit_for_bit_as_written_by_hand(injected: Callable[[], int]) -> None:
    losses = train()
    assert losses == EXPECTED["by hand"] != EXPECTED["float32"]
    assert losses[-1] < 0.7 * losses[0]  # autocast for the whole process would not train
    assert injected() == 30


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_entered_where_the_script_does_it(
    injected: Callable[[], int], enabled: bool
) -> None:
    losses = train(lambda: torch.autocast("cpu", torch.bfloat16, enabled=enabled))
    assert losses == EXPECTED["by hand" if enabled else "float32"]
    assert injected() == 0


def test_the_models_own_hooks_run_under_autocast(injected: Callable[[], int]) -> None:
    model, seen = nn.Linear(4, 4), []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    model.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    assert model(torch.randn(2, 4)).dtype == torch.bfloat16
    assert seen == [True, True]
    assert not torch.is_autocast_enabled("cpu")


class Focal(nn.Module):
    """A loss of the user's."""

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        self.seen = torch.is_autocast_enabled("cpu")
        return F.cross_entropy(out.float(), y)


class Weighted(nn.CrossEntropyLoss):
    """A loss of torch's, with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        self.seen = torch.is_autocast_enabled("cpu")
        return self.scale * super().forward(out.float(), y)


@pytest.mark.parametrize("kind", [Focal, Weighted])
def test_losses_stay_in_float32(
    injected: Callable[[], int], kind: type[Focal] | type[Weighted]
) -> None:
    loss = kind()
    assert train(loss_of=loss, steps=5) == EXPECTED["by hand"][:5]
    assert not loss.seen
    assert injected() == 5


class WithLoss(nn.Module):
    """A model that returns its loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.loss = net, nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.net(x), data()[1])
        return loss


class Checkpointed(nn.Module):
    """A model that computes its activations again in backward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(self.net, x, use_reentrant=False)


def compiled(net: nn.Module) -> Any:
    return torch.compile(net, backend="eager", fullgraph=True)


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


@pytest.mark.parametrize("wrap", [compiled, compiled_in_place, Checkpointed])
def test_a_model_within_another_is_one_call(
    injected: Callable[[], int], wrap: Callable[[nn.Module], Any]
) -> None:
    assert train(wrap=wrap, steps=5) == EXPECTED["by hand"][:5]
    assert injected() == 5


def test_a_model_that_returns_its_loss_is_one_call(injected: Callable[[], int]) -> None:
    losses = train(wrap=WithLoss, loss_of=lambda out, _: out, steps=5)
    assert injected() == 5
    assert losses == train(by_hand, WithLoss, lambda out, _: out, steps=5)
    assert injected() == 5


def test_a_model_in_ddp_is_one_call(injected: Callable[[], int], tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        losses = train(wrap=nn.parallel.DistributedDataParallel, steps=5)
    finally:
        torch.distributed.destroy_process_group()
    assert losses == EXPECTED["by hand"][:5]
    assert injected() == 5


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_autocast_ends_when_a_forward_fails(
    injected: Callable[[], int], error: type[BaseException]
) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error("here")

    with pytest.raises(error):
        nn.Sequential(nn.Linear(4, 4), Broken())(torch.randn(2, 4))
    assert not torch.is_autocast_enabled("cpu")
    assert train(steps=5) == EXPECTED["by hand"][:5]


def test_threads_do_not_know_of_each_other(injected: Callable[[], int]) -> None:
    inside, done = threading.Event(), threading.Event()
    found: list[object] = []

    class Waits(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            inside.set()
            done.wait(20)
            return super().forward(x)

    def other() -> None:
        inside.wait(20)
        found.append(torch.is_autocast_enabled("cpu"))
        found.append(nn.Linear(4, 4)(torch.randn(2, 4)).dtype)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert Waits(4, 4)(torch.randn(2, 4)).dtype == torch.bfloat16
    thread.join()
    assert found == [False, torch.bfloat16]
    assert injected() == 2


SCRIPT = """
import sys
from ptools.launcher import inject
inject.install()
assert "torch" not in sys.modules
from torch import nn, randn
print(nn.Linear(4, 4)(randn(2, 4)).dtype, inject.count())
"""


@pytest.mark.parametrize(
    ("variable", "said"), [("1", "torch.bfloat16 1\n"), ("", "torch.float32 0\n")]
)
def test_a_program_gets_it_when_it_imports_torch(variable: str, said: str, folder: Path) -> None:
    variables = {**os.environ, "PTOOLS_AMP_INJECT": variable}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=variables, capture_output=True, text=True
    )
    assert done.stdout == said, done.stderr
