"""The models of `summary_macs.py`, each with its truth as a closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from harness import import_torchvision
from torch import nn

Built = tuple[nn.Module, tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """A model with its inputs, and how many MACs (or parameters) there are in truth."""

    name: str
    truth: int
    build: Callable[[], Built]
    what: Literal["macs", "parameters"] = "macs"


def resnet50_macs() -> int:
    """Stem, bottlenecks (stride in the 3x3), head."""
    total, channels, side = 112**2 * 3 * 64 * 49, 64, 56
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        stride = 1 if width == 64 else 2
        for block in range(blocks):
            total += side**2 * channels * width
            side //= stride if block == 0 else 1
            total += side**2 * (9 * width**2 + 4 * width**2)
            total += side**2 * channels * 4 * width if block == 0 else 0
            channels = 4 * width
    return total + 2048 * 1000


def mobilenet_v2_macs() -> int:
    """Stem, inverted residuals (expand, depthwise, project), last convolution, head."""
    total, channels, side = 112**2 * 3 * 32 * 9, 32, 112
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2))
    for expand, out, blocks, stride in (*stages, (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)):
        for block in range(blocks):
            inner = expand * channels
            total += side**2 * channels * inner if expand > 1 else 0
            side //= stride if block == 0 else 1
            total += side**2 * inner * (9 + out)
            channels = out
    return total + 7**2 * 320 * 1280 + 1280 * 1000


def encoder_macs(layers: int, tokens: int, width: int) -> int:
    """q, k, v, output, and two linear layers of four times the width; scores and their use."""
    return layers * (tokens * 12 * width**2 + 2 * tokens**2 * width)


def swin_t_macs() -> int:
    """Windows of 49 tokens, and merging of 2x2 patches between the stages."""
    total = 56**2 * 3 * 16 * 96
    for stage, blocks in enumerate((2, 2, 6, 2)):
        tokens, width = (56 >> stage) ** 2, 96 << stage
        total += blocks * (tokens * 12 * width**2 + 2 * tokens * 49 * width)
        total += tokens // 4 * 4 * width * 2 * width if stage < 3 else 0
    return total + 768 * 1000


def convnext_tiny_macs() -> int:
    """7x7 depthwise and two linear layers a block, and 2x2 convolutions between the stages."""
    total = 56**2 * 3 * 16 * 96
    for stage, blocks in enumerate((3, 3, 9, 3)):
        tokens, width = (56 >> stage) ** 2, 96 << stage
        total += blocks * tokens * (49 * width + 8 * width**2)
        total += tokens // 4 * 4 * width * 2 * width if stage < 3 else 0
    return total + 768 * 1000


VIT = 196 * 3 * 16**2 * 768 + encoder_macs(12, 197, 768) + 768 * 1000
TOKENS = 128
LLAMA = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 8000,
}
LLAMA_WEIGHTS = 2 * 512**2 + 2 * 512 * 256 + 3 * 512 * 1376
LLAMA_MACS = 8 * (TOKENS * LLAMA_WEIGHTS + 2 * TOKENS**2 * 512) + TOKENS * 512 * 8000


def vision(name: str) -> Callable[[], Built]:
    return lambda: (
        import_torchvision().models.get_model(name, weights=None),
        (torch.randn(1, 3, 224, 224),),
    )


def hugging_face(
    model: str, config: str, dtype: torch.dtype = torch.float32, **settings: Any
) -> Callable[[], Built]:
    def build() -> Built:
        import_torchvision()
        import transformers

        built = getattr(transformers, model)(getattr(transformers, config)(**settings))
        images = config == "ViTConfig"
        data = torch.randn(1, 3, 224, 224) if images else torch.randint(0, 1000, (1, TOKENS))
        return built.to(dtype), (data,)

    return build


MODELS = (
    Case("resnet50", resnet50_macs(), vision("resnet50")),
    Case("mobilenet_v2", mobilenet_v2_macs(), vision("mobilenet_v2")),
    Case("vit_b_16, torchvision", VIT, vision("vit_b_16")),
    Case(
        "ViT-B/16, HF", VIT, hugging_face("ViTForImageClassification", "ViTConfig", num_labels=1000)
    ),
    Case("swin_t", swin_t_macs(), vision("swin_t")),
    Case("convnext_tiny", convnext_tiny_macs(), vision("convnext_tiny")),
    Case(
        "BERT-base, 128 tokens",
        encoder_macs(12, TOKENS, 768) + 768**2,
        hugging_face("BertModel", "BertConfig"),
    ),
    Case(
        "GPT-2, 128 tokens",
        encoder_macs(12, TOKENS, 768) + TOKENS * 768 * 50257,
        hugging_face("GPT2LMHeadModel", "GPT2Config"),
    ),
    Case(
        "tiny Llama, 128 tokens",
        LLAMA_MACS,
        hugging_face("LlamaForCausalLM", "LlamaConfig", **LLAMA),
    ),
)
