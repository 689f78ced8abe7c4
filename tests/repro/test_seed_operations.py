"""Operations without a deterministic version: what is said of them, and that it is right."""

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ptools.repro.seeding.alternatives import instead_of, operation_in
from ptools.repro.seeding.flags import set_flags, undone
from ptools.repro.seeding.nondeterministic import Collected, refusal


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for flag in ("deterministic", "benchmark", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, flag, getattr(torch.backends.cudnn, flag))
    for name in ("filterwarnings", "simplefilter", "resetwarnings"):
        monkeypatch.setattr(warnings, name, getattr(warnings, name))
    with warnings.catch_warnings():
        yield
    torch.use_deterministic_algorithms(False)


def put() -> None:
    torch.zeros(4).put_(torch.tensor([1]), torch.tensor([2.0]))


LINE = inspect.getsourcelines(put)[1] + 1


def test_strict_names_the_operation_its_line_and_the_alternative() -> None:
    set_flags(torch, "strict")
    with pytest.raises(RuntimeError) as raised:
        put()
    told = refusal(raised.value)
    assert told is not None
    assert told.startswith("put_ has no deterministic version, called at ")
    assert re.search(rf"test_seed_operations\.py:{LINE}: write .*index_copy_", told)


class Putting(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        put()
        return index


def in_worker() -> Any:
    return list(DataLoader(Putting(), num_workers=1, multiprocessing_context="fork"))


def test_strict_names_the_line_within_a_worker() -> None:
    set_flags(torch, "strict")
    with pytest.raises(RuntimeError) as raised:
        in_worker()
    assert f"test_seed_operations.py:{LINE}: write" in (refusal(raised.value) or "")


def test_warn_is_shown_at_once_in_a_worker_which_tells_nothing_later(
    capfd: pytest.CaptureFixture[str],
) -> None:
    warnings.showwarning = lambda message, *_: print(message, file=sys.stderr, flush=True)
    collected = Collected()
    collected.begin()
    set_flags(torch, "warn")
    in_worker()
    assert capfd.readouterr().err.count("put_ does not have a deterministic") == 1
    assert collected.lines() == []


def test_another_error_is_not_ours_to_explain() -> None:
    assert refusal(RuntimeError("out of memory")) is None
    assert refusal(ValueError("put_ does not have a deterministic implementation")) is None


def test_warn_counts_by_line_whatever_the_programs_filters_are() -> None:
    shown: list[str] = []
    warnings.showwarning = lambda message, *_: shown.append(str(message))
    collected = Collected()
    collected.begin()
    set_flags(torch, "warn")
    for action in ("ignore", "error", "always"):  # of the program's own
        warnings.simplefilter(action)  # type: ignore[arg-type]
        put()
    warnings.warn("something else", stacklevel=1)
    (line,) = collected.lines()
    assert re.match(rf"  put_ at .*test_seed_operations\.py:{LINE}, 3 times: write ", line)
    assert shown == ["something else"]


def test_flags_that_the_program_sets_otherwise_are_told() -> None:
    set_flags(torch, "warn")
    assert undone("warn") == []
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(False)
    assert undone("warn") == [
        "torch.backends.cudnn.benchmark = True",
        "torch.use_deterministic_algorithms(False)",
    ]
    assert undone("off") == []


def documented() -> list[str]:
    """The operations that raise, by the names in torch's documentation."""
    text = torch.use_deterministic_algorithms.__doc__ or ""
    text = text.partition("operations will throw a")[2].partition("In addition")[0]
    return re.findall(r"\* :\w+:`torch\.(?:nn\.functional|nn|Tensor)?\.?(\w+)`", text)


# torch's documentation names modules, its errors kernels.
KERNELS = {
    "AvgPool3d": "avg_pool3d_backward_cuda",
    "AdaptiveAvgPool2d": "adaptive_avg_pool2d_backward_cuda",
    "AdaptiveAvgPool3d": "adaptive_avg_pool3d_backward_cuda",
    "AdaptiveMaxPool2d": "adaptive_max_pool2d_backward_cuda",
    "FractionalMaxPool2d": "fractional_max_pool2d_backward_cuda",
    "FractionalMaxPool3d": "fractional_max_pool3d_backward_cuda",
    "MaxUnpool1d": "max_unpooling2d_forward_out",
    "MaxUnpool2d": "max_unpooling2d_forward_out",
    "MaxUnpool3d": "max_unpooling3d_forward_out",
    "interpolate": "upsample_bicubic2d_backward_out_cuda",
    "ReflectionPad1d": "reflection_pad1d_backward_out_cuda",
    "ReflectionPad2d": "reflection_pad2d_backward_cuda",
    "ReflectionPad3d": "reflection_pad3d_backward_out_cuda",
    "NLLLoss": "nll_loss2d_forward_out_cuda_template",
    "CTCLoss": "ctc_loss_backward_gpu",
    "EmbeddingBag": "embedding_bag_backward_cuda_max",
    "histc": "_histc_cuda with floating point input",
    "bincount": "_bincount_cuda",
    "median": "median CUDA with indices output",
    "grid_sample": "grid_sampler_2d_backward_cuda",
    "cumsum": "cumsum_cuda_kernel",
    "resize_": "quantized_resize_cpu_",
}


def test_there_is_an_alternative_for_all_that_torch_documents() -> None:
    names = documented()
    assert len(names) >= 24
    missing = [name for name in names if instead_of(KERNELS.get(name, name)) is None]
    assert not missing


def test_torchs_own_messages_are_understood() -> None:
    text = "median CUDA with indices output does not have a deterministic implementation, but"
    assert instead_of(operation_in(text) or "") is not None
    assert operation_in("the model does not work") is None


def _unpooled(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(2, 3, 4, 4)
    return zeros.flatten(2).scatter(2, indices.flatten(2), x.flatten(2)).view(2, 3, 4, 4)


X = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
FLAT = X.flatten()
POOLED = F.max_pool2d(X, 2, return_indices=True)
INDEX = torch.tensor([[0, 3, 5], [1, 1, 7]])
WEIGHT = FLAT[:32].view(8, 4)
TARGET = torch.tensor([2, 0])
LOG = X[:, :, 0, 0].log_softmax(1)
PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "adaptive_avg_pool2d": (lambda: F.adaptive_avg_pool2d(X, 1), lambda: X.mean((2, 3), True)),
    "adaptive_max_pool2d": (lambda: F.adaptive_max_pool2d(X, 1), lambda: X.amax((2, 3), True)),
    "max_unpooling2d": (lambda: F.max_unpool2d(*POOLED, 2), lambda: _unpooled(*POOLED)),
    "nll_loss": (
        lambda: F.nll_loss(LOG, TARGET),
        lambda: -LOG.gather(1, TARGET.unsqueeze(1)).mean(),
    ),
    "embedding_bag_max": (
        lambda: F.embedding_bag(INDEX, WEIGHT, mode="max"),
        lambda: F.embedding(INDEX, WEIGHT).amax(1),
    ),
    "put_": (
        lambda: X.clone().put_(INDEX[0], FLAT[:3]),
        lambda: X.clone().view(-1).index_copy_(0, INDEX[0], FLAT[:3]).view_as(X),
    ),
    "bincount": (
        lambda: torch.bincount(INDEX[1], FLAT[:3], minlength=8),
        lambda: torch.zeros(8).index_add(0, INDEX[1], FLAT[:3]),
    ),
    "median": (
        lambda: X.median(3).values,
        lambda: X.sort(3).values[..., (X.shape[3] - 1) // 2],
    ),
    "kthvalue": (lambda: X.kthvalue(3, 3).values, lambda: X.sort(3).values[..., 3 - 1]),
    "cumsum": (lambda: X.cumsum(3), lambda: X @ torch.ones(4, 4).triu()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_alternative_computes_the_same(name: str) -> None:
    operation, alternative = PAIRS[name]
    assert instead_of(name) is not None
    torch.testing.assert_close(operation(), alternative())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_operation_that_raises_on_a_gpu_only_is_named() -> None:
    set_flags(torch, "strict")
    with pytest.raises(RuntimeError) as raised:
        torch.rand(4, device="cuda").cumsum(0)
    assert "cumsum_cuda_kernel has no deterministic version" in (refusal(raised.value) or "")
