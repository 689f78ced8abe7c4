"""The models of `fuse_zoo.py`: third-party ones with batch norms, weights and statistics random."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from harness import import_torchvision
from torch import nn

Shape = tuple[int, ...]
NORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Entry:
    """A model of a library, and the shape of one sample of its input."""

    library: str
    name: str
    build: Callable[[], nn.Module]
    sample: Shape

    @property
    def label(self) -> str:
        return f"{self.library} {self.name}"

    def made(self) -> nn.Module:
        """The model in eval mode, always with the same weights, its batch norms calibrated."""
        torch.manual_seed(0)
        model = self.build().eval()
        calibrate(model, self.inputs(4, seed=10))
        return model

    def inputs(self, batch: int = 2, seed: int = 0) -> torch.Tensor:
        """Noise, the same for one seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *self.sample, generator=generator)


def calibrate(model: nn.Module, inputs: torch.Tensor) -> None:
    """Statistics of real activations, layer by layer: each norm passes on what it will in use.

    With statistics of one forward in training mode instead, many untrained nets either amplify
    float32's rounding to a share of the output, or give the same output for every input.
    """

    def settle(norm: Any, args: tuple[torch.Tensor, ...], output: Any) -> Any:
        if not norm.training:
            return output
        norm.eval()
        _perturb(norm)
        return norm.forward(*args)

    norms: list[Any] = [module for module in model.modules() if isinstance(module, NORM)]
    momenta = [norm.momentum for norm in norms]
    handles = [norm.register_forward_hook(settle) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(inputs)
    for norm, momentum, handle in zip(norms, momenta, handles, strict=True):
        norm.momentum = momentum
        norm.eval()
        handle.remove()


def _perturb(norm: Any) -> None:
    with torch.no_grad():
        variance = norm.running_var  # few places make small ones, which other inputs exceed
        variance.clamp_(min=max(0.1 * variance.mean().item(), 1e-8))
        if norm.affine:
            norm.weight.mul_(torch.empty_like(norm.weight).uniform_(0.2, 0.4)).add_(0.03)
            norm.bias.add_(torch.empty_like(norm.bias).normal_(0, 0.1))


def _torchvision(name: str, sample: Shape) -> Entry:
    def build() -> nn.Module:
        models = import_torchvision().models
        more = {"weights_backbone": None} if "lraspp" in name or "_resnet" in name else {}
        if name in ("googlenet", "inception_v3"):
            more = {"init_weights": False}
        model: nn.Module = models.get_model(name, weights=None, **more)
        return model

    return Entry("torchvision", name, build, sample)


def _timm(name: str, sample: Shape) -> Entry:
    def build() -> nn.Module:
        import_torchvision()
        model: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False)
        return model

    return Entry("timm", name, build, sample)


def _pytorchcv(name: str, sample: Shape) -> Entry:
    def build() -> nn.Module:
        import_torchvision()
        provider = importlib.import_module("pytorchcv.model_provider")
        more = {"in_size": sample[1:]} if name.startswith("icnet") else {}
        model: nn.Module = provider.get_model(name, pretrained=False, **more)
        return model

    return Entry("pytorchcv", name, build, sample)


def _monai(name: str, sample: Shape, **settings: Any) -> Entry:
    def build() -> nn.Module:
        nets = importlib.import_module("monai.networks.nets")
        model: nn.Module = getattr(nets, name)(**settings)
        return model

    return Entry("monai", name, build, sample)


def _transformers(name: str, sample: Shape, **settings: Any) -> Entry:
    def build() -> nn.Module:
        import_torchvision()
        transformers = importlib.import_module("transformers")
        family = name.removesuffix("ForImageClassification")
        config = getattr(transformers, f"{family}Config")(**settings)
        model: nn.Module = getattr(transformers, name)(config)
        for module in model.modules():  # its own weights are so small that the input is lost
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        return model

    return Entry("transformers", name, build, sample)


def _vit_pytorch(module: str, name: str, sample: Shape, **settings: Any) -> Entry:
    def build() -> nn.Module:
        model: nn.Module = getattr(importlib.import_module(f"vit_pytorch.{module}"), name)(
            **settings
        )
        return model

    return Entry("vit-pytorch", name, build, sample)


def _segmentation(name: str, encoder: str, sample: Shape) -> Entry:
    def build() -> nn.Module:
        import_torchvision()
        models = importlib.import_module("segmentation_models_pytorch")
        model: nn.Module = getattr(models, name)(encoder, encoder_weights=None)
        return model

    return Entry("smp", f"{name} {encoder}", build, sample)


SMALL, MIDDLE, WHOLE = (3, 64, 64), (3, 128, 128), (3, 224, 224)
VOLUME = (1, 32, 32, 32)
VIDEO = (3, 8, 32, 32)
FLAT = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
DEEP = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
B0 = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
TINY = {"hidden_sizes": [32, 64, 96, 128], "depths": [2, 2, 2, 2]}

ZOO = (
    *(
        _torchvision(name, SMALL)
        for name in (
            "resnet18 resnet50 densenet121 mobilenet_v2 mobilenet_v3_small mnasnet0_5 "
            "shufflenet_v2_x1_0 efficientnet_b0 regnet_y_400mf vgg11_bn googlenet "
            "fcn_resnet50 lraspp_mobilenet_v3_large"
        ).split()
    ),
    _torchvision("inception_v3", (3, 96, 96)),
    _torchvision("r3d_18", VIDEO),
    *(
        _timm(name, SMALL)
        for name in (
            "resnet18 efficientnet_b0 tf_efficientnet_b0 efficientvit_b0 mobilenetv3_small_100 "
            "mobilenetv4_conv_small repvgg_a0 mobileone_s0 fastvit_t8 repvit_m1 repghostnet_050 "
            "ghostnet_100 mixnet_s regnetx_002 hrnet_w18_small dla34 res2net50_26w_4s resnest14d "
            "selecsls42b skresnet18 ese_vovnet19b_dw cspresnet50 rexnet_100 mobilevit_xxs "
            "hgnetv2_b0 starnet_s1"
        ).split()
    ),
    *(_timm(name, WHOLE) for name in "tiny_vit_5m_224 levit_128s efficientformer_l1".split()),
    *(
        _pytorchcv(name, WHOLE)
        for name in (
            "resnet18 preresnet18 seresnet18 densenet121 mobilenet_w1 mobilenetv3_large_w1 "
            "shufflenet_g1_w1 shufflenetv2_w1 igcv3_w1 menet108_8x1_g3 darknet53 dla34 hardnet39ds "
            "proxylessnas_cpu ghostnet regnetx002 dpn68 bninception airnet50_1x64d_r2 peleenet "
            "cbam_resnet18 spnasnet bagnet9"
        ).split()
    ),
    _pytorchcv("xception", (3, 299, 299)),
    _pytorchcv("icnet_resnetd50b_cityscapes", MIDDLE),
    _monai("UNet", VOLUME, **DEEP, channels=(8, 16, 32), strides=(2, 2), norm="batch"),
    _monai("BasicUNet", (1, 64, 64), **FLAT, norm="batch"),
    _monai("BasicUNetPlusPlus", (1, 64, 64), **FLAT, norm="batch"),
    _monai("AttentionUnet", (1, 64, 64), **FLAT, channels=(8, 16, 32), strides=(2, 2)),
    _monai("RegUNet", VOLUME, **DEEP, num_channel_initial=8, depth=2),
    _monai("SegResNet", VOLUME, **DEEP, norm="batch"),
    _monai("VNet", VOLUME, **DEEP),
    _monai("DenseNet121", (1, 64, 64), **FLAT),
    _monai("EfficientNetBN", SMALL, model_name="efficientnet-b0", pretrained=False, spatial_dims=2),
    _transformers("ResNetForImageClassification", SMALL, **TINY, embedding_size=32),
    _transformers(
        "RegNetForImageClassification", SMALL, **TINY, embedding_size=32, groups_width=16
    ),
    _transformers("LevitForImageClassification", WHOLE),
    _transformers("EfficientNetForImageClassification", SMALL, **B0),
    _transformers("CvtForImageClassification", SMALL),
    _transformers("MobileViTForImageClassification", MIDDLE),
    _transformers("MobileViTV2ForImageClassification", MIDDLE),
    _transformers("MobileNetV1ForImageClassification", SMALL),
    _transformers("MobileNetV2ForImageClassification", SMALL),
    _transformers("SwiftFormerForImageClassification", SMALL),
    _vit_pytorch(
        "levit",
        "LeViT",
        WHOLE,
        image_size=224,
        num_classes=10,
        stages=3,
        dim=(64, 96, 128),
        depth=2,
        heads=(2, 3, 4),
        mlp_mult=2,
    ),
    _vit_pytorch("cvt", "CvT", SMALL, num_classes=10),
    _vit_pytorch(
        "mobile_vit",
        "MobileViT",
        MIDDLE,
        image_size=(128, 128),
        dims=[32, 48, 64],
        channels=[16, 16, 24, 24, 32, 32, 48, 48, 64, 64, 96],
        num_classes=10,
    ),
    _segmentation("Unet", "resnet18", SMALL),
    _segmentation("FPN", "resnet18", SMALL),
    _segmentation("DeepLabV3Plus", "resnet18", SMALL),
    _segmentation("Linknet", "resnet18", SMALL),
    _segmentation("Unet", "efficientnet-b0", SMALL),
    _segmentation("MAnet", "resnet18", SMALL),
)
