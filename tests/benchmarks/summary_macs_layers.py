"""The single layers of `summary_macs.py`, each with its truth as a closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from summary_macs_models import TOKENS, Built, Case, hugging_face
from torch import nn

MIXTRAL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 1000,
}
MIXTRAL_WEIGHTS = 2 * 128**2 + 2 * 128 * 64 + 8 * 128 + 2 * 3 * 128 * 256
MIXTRAL_MACS = 2 * (TOKENS * MIXTRAL_WEIGHTS + 2 * TOKENS**2 * 128) + TOKENS * 128 * 1000


class Parametrised(nn.Module):
    """A forward that is one function of a parameter and the inputs."""

    def __init__(self, shape: tuple[int, ...], function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.weight)


class Attention(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class MyLinear(nn.Linear):
    """A subclass that changes nothing."""


class Tied(nn.Module):
    """An embedding whose weight the head shares."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids))


def layer(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Built]:
    return lambda: (make(), tuple(torch.randn(shape) for shape in shapes))


def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight, padding=1)


def contract(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.einsum("btc,cd->btd", x, weight)


def self_attention() -> Built:
    text = torch.randn(TEXT)
    return nn.MultiheadAttention(256, 4, batch_first=True), (text, text, text)


# No biases, where a layer can do without: tools disagree on whether they count. Batch 1, since
# some report a sample's share.
IMAGE = (1, 16, 16, 16)
TEXT = (1, 64, 256)
QUERIES = (1, 4, 64, 32)
LINEAR = 64 * 256 * 128
ATTENTION = 4 * 64 * 256**2 + 2 * 64**2 * 256

MICRO = (
    Case("Linear on 3-D", LINEAR, layer(lambda: nn.Linear(256, 128, bias=False), TEXT)),
    Case(
        "ConvTranspose2d, stride 2",
        16**2 * 16 * 32 * 4**2,
        layer(lambda: nn.ConvTranspose2d(16, 32, 4, 2, 1, bias=False), IMAGE),
    ),
    Case(
        "depthwise Conv2d",
        16**2 * 16 * 3**2,
        layer(lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), IMAGE),
    ),
    Case(
        "grouped ConvTranspose2d",
        16**2 * 16 * 32 // 4 * 3**2,
        layer(lambda: nn.ConvTranspose2d(16, 32, 3, 2, groups=4, bias=False), IMAGE),
    ),
    Case("MultiheadAttention", ATTENTION, self_attention),
    Case(
        "TransformerEncoderLayer",
        ATTENTION + 64 * 2 * 256 * 1024,
        layer(lambda: nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True), TEXT),
    ),
    Case(
        "LSTM",
        64 * 4 * 2 * 256**2,
        layer(lambda: nn.LSTM(256, 256, bias=False, batch_first=True), TEXT),
    ),
    Case(
        "GRU",
        64 * 3 * 2 * 256**2,
        layer(lambda: nn.GRU(256, 256, bias=False, batch_first=True), TEXT),
    ),
    Case(
        "F.scaled_dot_product_attention",
        4 * 2 * 64**2 * 32,
        layer(Attention, QUERIES, QUERIES, QUERIES),
    ),
    Case("x @ parameter", LINEAR, layer(lambda: Parametrised((256, 128), multiply), TEXT)),
    Case("einsum", LINEAR, layer(lambda: Parametrised((256, 128), contract), TEXT)),
    Case(
        "F.conv2d",
        16**2 * 16 * 32 * 3**2,
        layer(lambda: Parametrised((32, 16, 3, 3), convolve), IMAGE),
    ),
    Case(
        "Bilinear",
        40 * 400 * 300,
        layer(lambda: nn.Bilinear(400, 300, 40, bias=False), (1, 400), (1, 300)),
    ),
    Case("subclass of Linear", LINEAR, layer(lambda: MyLinear(256, 128, bias=False), TEXT)),
    Case(
        "Mixtral, tiny, bf16",
        MIXTRAL_MACS,
        hugging_face("MixtralForCausalLM", "MixtralConfig", torch.bfloat16, **MIXTRAL),
    ),
    Case(
        "tied weights: parameters",
        64 * 32,
        lambda: (Tied(), (torch.randint(0, 64, (2, 16)),)),
        "parameters",
    ),
)

# Each behind a 1x1 convolution, so that it owes a gradient to its input too.
BACKWARD: dict[str, nn.Module] = {
    "Conv2d": nn.Conv2d(32, 64, 3, padding=1),
    "Conv2d, 4 groups": nn.Conv2d(32, 64, 3, padding=1, groups=4),
    "Conv2d, depthwise": nn.Conv2d(32, 32, 3, padding=1, groups=32),
    "Conv2d, depthwise, stride 2": nn.Conv2d(32, 32, 3, 2, padding=1, groups=32),
    "ConvTranspose2d, 4 groups": nn.ConvTranspose2d(32, 64, 3, 2, groups=4),
}


def backward_macs(layer: nn.Module, image: torch.Tensor) -> int:
    """The 1x1 convolution's weight gradient, and both gradients of the layer behind it.

    Either gradient takes as many as the layer's forward: each of its weights once at each
    position, of the output, or of the input if it is transposed.
    """
    batch, channels, height, width = image.shape
    stride = layer.stride[0] if isinstance(layer, nn.Conv2d) else 1
    positions = batch * (height // stride) * (width // stride)
    return batch * height * width * channels * 32 + 2 * positions * layer.weight.numel()
