"""Real models of seven libraries: the same output, and as many batch norms folded as can be."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ptools.fusion import fuse

NORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Case:
    """A model, and how many of its batch norms fold, counted by hand from its structure."""

    package: str
    name: str
    build: Callable[[Any], nn.Module]
    folded: int
    left: int = 0
    sample: tuple[int, ...] = (3, 32, 32)
    slow: bool = True


def by_name(package: str, name: str, folded: int, left: int = 0, **more: Any) -> Case:
    """A model of timm, torchvision.models or pytorchcv."""

    def build(module: Any) -> nn.Module:
        if package == "timm":
            return module.create_model(name, pretrained=False)
        return module.get_model(name, **NO_WEIGHTS[package])

    return Case(package, name, build, folded, left, **more)


def from_config(family: str, folded: int, **settings: Any) -> Case:
    """An image classifier of transformers, with weights large enough to let the input through."""

    def build(module: Any) -> nn.Module:
        config = getattr(module, f"{family}Config")(**settings)
        model = getattr(module, f"{family}ForImageClassification")(config)
        for conv in model.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight)
        return model

    return Case("transformers", family, build, folded, sample=(3, 64, 64))


def monai(name: str, folded: int, left: int = 0, rank: int = 2, **settings: Any) -> Case:
    def build(module: Any) -> nn.Module:
        sizes = {"spatial_dims": rank, "in_channels": 1, "out_channels": 2}
        return getattr(module, name)(**sizes, **settings)

    return Case("monai.networks.nets", name, build, folded, left, (1, *(32,) * rank))


def smp(name: str, folded: int) -> Case:
    def build(module: Any) -> nn.Module:
        return getattr(module, name)("resnet18", encoder_weights=None)

    return Case("segmentation_models_pytorch", name, build, folded, sample=(3, 64, 64))


def mobile_vit(module: Any) -> nn.Module:
    channels = [16, 16, 24, 24, 32, 32, 48, 48, 64, 64, 96]
    return module.MobileViT((64, 64), [32, 48, 64], channels, 10)


NO_WEIGHTS = {
    "torchvision.models": {"weights": None},
    "pytorchcv.model_provider": {"pretrained": False},
}
TINY = {"hidden_sizes": [16, 32], "depths": [2, 2], "embedding_size": 16}
CASES = (
    by_name("torchvision.models", "resnet18", 20, slow=False),  # 1 + 8 blocks of 2 + 3 shortcuts
    by_name("torchvision.models", "mobilenet_v3_small", 34),
    by_name("torchvision.models", "densenet121", 59, 62),  # after conv0, and one of each 58 layers
    by_name("torchvision.models", "shufflenet_v2_x1_0", 56, sample=(3, 64, 64)),
    by_name("torchvision.models", "r3d_18", 20, sample=(3, 4, 16, 16)),  # as resnet18, in 3d
    by_name("timm", "repvgg_a0", 61),  # 22 blocks of 2, 17 identities
    by_name("timm", "mobileone_s0", 226, sample=(3, 64, 64)),
    by_name("timm", "fastvit_t8", 70, sample=(3, 64, 64)),
    by_name("timm", "efficientvit_b0", 26, sample=(3, 64, 64)),
    # stem, head, 15 blocks of 3 and 1 of 2
    by_name("timm", "tf_efficientnet_b0", 49, sample=(3, 64, 64)),
    by_name("timm", "levit_128s", 52, sample=(3, 224, 224)),
    # all 80 but the stem's, whose convolution timm's `forward_intermediates` also returns
    by_name("timm", "ghostnet_100", 79, 1),
    by_name("timm", "skresnet18", 36),
    by_name("pytorchcv.model_provider", "resnet20_cifar10", 21, slow=False),  # 1 + 18 + 2 shortcuts
    # the second of each of 9 units follows a convolution; the first, and the last of all, a sum
    by_name("pytorchcv.model_provider", "preresnet20_cifar10", 9, 10),
    by_name("pytorchcv.model_provider", "seresnet20_cifar10", 21),
    monai("UNet", 4, rank=3, channels=(8, 16, 32), strides=(2, 2), norm="batch"),
    monai("BasicUNet", 18, features=(8, 8, 8, 8, 8, 8), norm="batch"),  # 9 blocks of 2
    monai("RegUNet", 9, num_channel_initial=4, depth=2),
    from_config("ResNet", 14, **TINY),  # embedder, 4 layers of 3, 1 shortcut
    from_config("RegNet", 15, **TINY, groups_width=8),
    from_config("MobileNetV1", 27),  # 1 + 13 blocks of 2
    from_config("MobileNetV2", 52),  # as torchvision's
    Case("vit_pytorch.mobile_vit", "MobileViT", mobile_vit, 35, sample=(3, 64, 64)),
    smp("Unet", 30),  # the encoder's 20, 5 blocks of 2
    smp("Linknet", 35),  # the encoder's 20, 5 blocks of 3
)
SLOW = [pytest.param(case, id=case.name, marks=pytest.mark.slow) for case in CASES if case.slow]
EXPORTED = ("resnet18", "fastvit_t8", "levit_128s", "preresnet20_cifar10", "BasicUNet", "Unet")
QUICK = [pytest.param(case, id=case.name) for case in CASES if not case.slow]


@pytest.fixture(autouse=True)
def one_thread():
    """Small layers gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def export(request, monkeypatch):
    """torch.export's graph for some models alone: it takes most of the time."""
    if request.node.callspec.id not in EXPORTED:
        alone = "ptools.fusion.evidence.exported_trace"
        monkeypatch.setattr(alone, lambda *args: (None, "not run"))


@pytest.mark.parametrize("case", [*QUICK, *SLOW[::2]])
@pytest.mark.usefixtures("torchvision", "export")  # timm and others import torchvision
def test_gives_the_same_output_and_folds_every_batch_norm_that_follows_a_convolution(case):
    torch.manual_seed(0)
    built = case.build(importlib_or_skip(case.package))
    model = calibrated(built, inputs(case, seed=10, batch=4))
    report = fuse(model, (inputs(case, seed=0),), latency=False)
    unseen = inputs(case, seed=2)
    assert difference(model, report.model, unseen) < 1e-3
    assert difference(model, model, unseen, inputs(case, seed=0)) > 0.01  # the input matters
    before, after = ran(model, unseen)[1], ran(report.model, unseen)[1]
    assert (before - after, after) == (case.folded, case.left)
    assert all(left.reason for left in report.left)


@pytest.mark.slow
@pytest.mark.usefixtures("torchvision", "export")
@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "fastvit_t8", "repghostnet_050"])
def test_merges_branches_into_as_few_convolutions_as_timm_does_by_hand(name):
    timm = importlib_or_skip("timm")
    torch.manual_seed(0)
    model = calibrated(timm.create_model(name, pretrained=False), torch.randn(4, 3, 64, 64))
    unseen = torch.randn(2, 3, 64, 64)
    fused = fuse(model, (torch.randn(2, 3, 64, 64),), latency=False).model
    by_hand = timm.utils.model.reparameterize_model(model)
    assert ran(fused, unseen)[0] == ran(by_hand, unseen)[0]
    assert difference(by_hand, fused, unseen) < 1e-3


def importlib_or_skip(package: str) -> Any:
    pytest.importorskip(package.partition(".")[0])
    return importlib.import_module(package)


def inputs(case: Case, seed: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *case.sample, generator=generator)


def calibrated(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """With statistics of real activations, layer by layer, and other scales and shifts."""

    def settle(norm: Any, args: Any, output: Any) -> Any:
        if not norm.training:
            return output
        norm.eval()
        with torch.no_grad():
            norm.running_var.clamp_(min=max(0.1 * norm.running_var.mean().item(), 1e-8))
            if norm.affine:
                norm.weight.mul_(torch.empty_like(norm.weight).uniform_(0.2, 0.4)).add_(0.03)
                norm.bias.add_(torch.empty_like(norm.bias).normal_(0, 0.1))
        return norm.forward(*args)

    model.eval()
    norms: Any = [module for module in model.modules() if isinstance(module, NORM)]
    handles = [norm.register_forward_hook(settle) for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return model.eval()


def difference(
    model: nn.Module, other: nn.Module, images: torch.Tensor, others: torch.Tensor | None = None
) -> float:
    """The largest of any output, over the standard deviation of that output."""
    with torch.no_grad():
        expected, got = model(images), other(images if others is None else others)
    return max(
        ((a - b).abs().max() / a.std()).item()
        for a, b in zip(tensors(expected), tensors(got), strict=True)
    )


def tensors(output: Any) -> list[torch.Tensor]:
    output = output.to_tuple() if hasattr(output, "to_tuple") else output
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]


class Ran(TorchDispatchMode):
    """Names of the operations that a forward runs, batch norms once for each statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = 0
        self.norms: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.convolutions += name == "convolution"
        if "batch_norm" in name and args[3] is not None:
            self.norms.add(args[3].data_ptr())
        return func(*args, **(kwargs or {}))


def ran(model: nn.Module, images: torch.Tensor) -> tuple[int, int]:
    """Convolutions and batch norms of one forward."""
    with torch.no_grad(), Ran() as counted:
        model(images)
    return counted.convolutions, len(counted.norms)
