"""Fused weights and their recipe: written, read, replayed on a fresh model; hostile files."""

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ptools.errors import PtoolsError, UsageError
from ptools.fusion import FusionReport, fuse
from ptools.fusion.saved import load_fused, save_fused

X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(7))


class Branches(nn.Module):
    """A RepVGG-like block: two convolutions and an identity, each with its batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.narrow = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))
        self.same = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.wide(x) + self.narrow(x) + self.same(x)).relu()


class Net(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, width, 3, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.block = Branches(width)
        self.head = nn.Linear(width, 3)
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.bn(self.stem(x))).mean((2, 3))) * self.scale


class Own(nn.Module):
    """A block that folds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn: nn.Module | None = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if self.bn is None else self.bn(self.conv(x))

    def fuse(self) -> None:
        fused = nn.utils.fuse_conv_bn_eval(self.conv, self.bn)
        self.conv = nn.Conv2d(4, 4, 1)
        self.conv.weight.copy_(fused.weight)
        self.conv.bias.copy_(fused.bias)
        self.bn = None


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
            module.num_batches_tracked.fill_(1)
    return model.eval()


def fused(model: nn.Module) -> FusionReport:
    return fuse(randomised(model), X, latency=False)


ORIGINAL = Net()


@pytest.fixture(scope="module")
def report() -> FusionReport:
    """What fusing a `Net` gives: made once, as nothing here changes it."""
    return fused(ORIGINAL)


@pytest.fixture
def net_file(folder: Path, report: FusionReport) -> Path:
    return save_fused(report, folder / "fused.pt")


@pytest.fixture
def saved(folder: Path) -> Callable[[nn.Module], Path]:
    return lambda model: save_fused(fused(model), folder / "fused.pt")


def test_a_fresh_model_with_other_weights_becomes_the_fused_one(net_file, report):
    fresh = Net()
    loaded = load_fused(fresh, net_file)
    assert loaded is fresh and not loaded.training
    assert not any(isinstance(m, nn.BatchNorm2d) for m in loaded.modules())
    assert torch.equal(loaded(X), report.model(X))
    assert torch.allclose(loaded(X), ORIGINAL(X), atol=1e-5)


def test_a_model_that_folds_itself_does_so_again(saved):
    original = nn.Sequential(Own(), nn.ReLU())
    loaded = load_fused(nn.Sequential(Own(), nn.ReLU()), saved(original))
    assert loaded[0].bn is None
    assert torch.allclose(loaded(X), original(X), atol=1e-6)


def test_branches_need_one_convolution_when_loaded(net_file):
    loaded = load_fused(Net(), net_file)
    names = {name.rpartition(".")[0] for name in loaded.state_dict()}
    assert names == {"stem", "block.wide.0", "head"}


def test_a_lazy_model_needs_no_input(saved):
    def build():
        return nn.Sequential(nn.LazyConv2d(5, 3), nn.LazyBatchNorm2d(), nn.ReLU())

    model = build()
    model(X)
    path = saved(model)
    assert torch.allclose(load_fused(build(), path)(X), model(X), atol=1e-5)


@pytest.mark.parametrize("block", [Own, lambda: nn.BatchNorm2d(4)])
def test_a_model_on_meta_gets_its_weights_from_the_file(saved, block):
    def build():
        return nn.Sequential(nn.Conv2d(4, 4, 3), block(), nn.ReLU())

    model = build()
    path = saved(model)
    with torch.device("meta"):
        fresh = build()
    loaded = load_fused(fresh, path)
    assert torch.allclose(loaded(X), model(X), atol=1e-5)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_buffer_on_meta_that_no_state_dict_holds_is_named(net_file):
    with torch.device("meta"):
        fresh = Net()
    with pytest.raises(PtoolsError, match="does not hold scale"):
        load_fused(fresh, net_file)


def test_the_file_loads_with_weights_only_and_names_the_model(net_file):
    content = torch.load(net_file, weights_only=True)
    assert set(content) == {"ptools_fuse", "state_dict"}
    assert content["ptools_fuse"]["version"] == 1
    assert content["ptools_fuse"]["model"] == "Net"
    assert content["ptools_fuse"]["steps"][0]["conv"] == "stem"


def test_nothing_is_overwritten_unasked(report, folder):
    path = folder / "fused.pt"
    path.write_text("mine")
    with pytest.raises(UsageError, match="already exists"):
        save_fused(report, path)
    assert path.read_text() == "mine"
    save_fused(report, path, force=True)


class Stateful(nn.Conv2d):
    state: Any = Path("x")

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def test_state_that_could_not_be_read_again_is_refused_before_the_file_is_there(folder):
    with pytest.raises(PtoolsError, match="weights_only"):
        save_fused(fused(nn.Sequential(Stateful(4, 4, 1), nn.BatchNorm2d(4))), folder / "fused.pt")
    assert list(folder.iterdir()) == []


class Pickled(Stateful):
    state = staticmethod(lambda: None)


def test_state_that_cannot_be_pickled_is_refused_in_the_same_way(folder):
    with pytest.raises(PtoolsError, match="weights_only"):
        save_fused(fused(nn.Sequential(Pickled(4, 4, 1), nn.BatchNorm2d(4))), folder / "fused.pt")
    assert list(folder.iterdir()) == []


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 1 KiB: writing fails as it does on a full disk.

    Not as a fixture: pytest's own output may be such a file.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_takes_no_more_is_an_error_and_leaves_nothing_behind(report, folder):
    told = pytest.raises(PtoolsError, match=r"fused\.pt could not be written.* are free")
    with told as caught, small_disk():
        save_fused(report, folder / "fused.pt")
    assert caught.value.hint
    assert list(folder.iterdir()) == []


def test_a_file_of_safetensors_has_no_place_for_the_recipe(report, folder):
    with pytest.raises(UsageError, match="safetensors") as caught:
        save_fused(report, folder / "fused.safetensors")
    assert caught.value.hint is not None and "fused.pt" in caught.value.hint


def test_a_class_is_no_model(net_file):
    with pytest.raises(UsageError, match="of type type"):
        load_fused(Net, net_file)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (nn.Linear(4, 4), "there is no module 'stem'"),
        (Net(width=7), "size mismatch for"),
        (nn.Sequential(Net()), "there is no module"),
    ],
)
def test_another_model_is_told_what_does_not_fit(net_file, model, told):
    with pytest.raises(PtoolsError, match=told) as caught:
        load_fused(model, net_file)
    assert "made for Net" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "content", [{"state_dict": {}}, [], {"ptools_fuse": 1}, {"ptools_fuse": {"version": 1}}]
)
def test_another_file_is_no_recipe(folder, content):
    torch.save(content, folder / "other.pt")
    with pytest.raises(UsageError, match=r"other\.pt was not written by ptools fuse"):
        load_fused(Net(), folder / "other.pt")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no zip", b"\x80\x02}"])
def test_a_file_that_is_no_checkpoint(folder, content):
    (folder / "junk.pt").write_bytes(content)
    with pytest.raises(PtoolsError, match=r"junk\.pt"):
        load_fused(Net(), folder / "junk.pt")


def test_a_file_that_is_not_there():
    with pytest.raises(UsageError, match="there is no file"):
        load_fused(Net(), "nowhere.pt")


def test_a_file_of_a_newer_version_says_so(net_file, folder):
    content = torch.load(net_file, weights_only=True)
    content["ptools_fuse"]["version"] = 2
    torch.save(content, folder / "new.pt")
    with pytest.raises(PtoolsError, match="newer ptools"):
        load_fused(Net(), folder / "new.pt")


class Watched(Net):
    """Notes whatever is called or read on it by name."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def destroy(self) -> None:
        self.called.append("destroy")

    @property
    def secret(self) -> nn.Module:
        self.called.append("secret")
        return self.stem


FOLD = {"conv": "stem", "size": [3, 3], "padding": [0, 0], "groups": 1, "replaced": {}}
HOSTILE: dict[str, Any] = {
    "another method": {"module": "", "method": "destroy"},
    "a method by its path": {"module": "", "method": "__class__.mro"},
    "a method of torch's": {"module": "stem", "method": "requires_grad_"},
    "a method that is no text": {"module": "", "method": ["fuse"]},
    "a property as a module": {"module": "secret", "method": "fuse"},
    "a property as a convolution": FOLD | {"conv": "secret"},
    "a property as a child": FOLD | {"replaced": {"block": ["__class__"]}},
    "a private attribute": FOLD | {"conv": "stem._modules"},
    "a module of another kind": FOLD | {"conv": "block"},
    "the model itself replaced": FOLD | {"replaced": {"": []}},
    "names that are no texts": FOLD | {"conv": 3},
    "a list instead of names": FOLD | {"replaced": [["bn", []]]},
    "an unknown step": {"run": "rm -rf"},
    "no step at all": 3,
    "a size without end": FOLD | {"conv": "bn", "size": [1 << 40, 1 << 40]},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_recipe_calls_nothing_and_is_an_error(net_file, folder, case):
    content = torch.load(net_file, weights_only=True)
    content["ptools_fuse"]["steps"] = [HOSTILE[case]]
    torch.save(content, folder / "hostile.pt")
    model = Watched()
    with pytest.raises(PtoolsError, match=r"hostile\.pt"):
        load_fused(model, folder / "hostile.pt")
    assert model.called == []


def test_a_pickle_is_never_executed(folder):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (folder / "exploded",)

    torch.save({"ptools_fuse": {"version": 1, "steps": [Bomb()]}, "state_dict": {}}, "bomb.pt")
    with pytest.raises(PtoolsError, match="never does"):
        load_fused(Net(), "bomb.pt")
    assert not (folder / "exploded").exists()


def test_the_file_holds_the_fused_weights_alone(net_file, report):
    weights = sum(tensor.nbytes for tensor in report.model.state_dict().values())
    assert net_file.stat().st_size < weights + 8192
