"""Whole model zoos against published tables and closed forms: the figures that ptools promises."""

import math
import re
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import metadata

import pytest
import torch

from ptools.summary import summarize

pytestmark = pytest.mark.slow


def test_torchvision_classification(torchvision):
    """MACs equal the published `_ops` (in G, to three decimals), parameters `num_params`."""
    models = torchvision.models
    wrong_macs, wrong_parameters = {}, {}
    names = models.list_models(module=models)
    for name in names:
        weights = next(iter(models.get_model_weights(name)))
        crop = weights.transforms.keywords["crop_size"]
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name == "vit_h_14":
            options["image_size"] = crop
        summary = summarize(
            lambda name=name, options=options: models.get_model(name, weights=None, **options),
            torch.empty(1, 3, crop, crop, device="meta"),
        )
        assert summary.not_counted == ()
        assert sum(line.macs for line in summary.lines) == summary.macs
        assert "torchvision" in summary.lines[0].file
        if f"{summary.macs / 1e9:.3f}" != f"{weights.meta['_ops']:.3f}":
            wrong_macs[name] = summary.macs / 1e9, weights.meta["_ops"]
        if summary.parameters != weights.meta["num_params"]:
            wrong_parameters[name] = summary.parameters, weights.meta["num_params"]
    assert len(names) == 80
    assert wrong_macs == {}
    # The published count leaves out the auxiliary classifiers that the builder makes.
    assert set(wrong_parameters) == {"googlenet"}


# Families with few depthwise convolutions: the table counts normalisation and activations too,
# which make over 3% where convolutions are that cheap.
PYTORCHCV = re.compile(
    r"(alexnet|b?n?_?vgg|resnet|preresnet|resnext|seresnet|seresnext|senet|densenet|wrn|drn|dpn|"
    r"darknet|bninception|inceptionv|inceptionresnetv|xception|pyramidnet|hrnet|airnet|dla|"
    r"selecsls|vovnet|hardnet|cspdarknet|res2net|regnet|polynet|bam_|cbam_|ibn_).*"
)


def published_by_pytorchcv(builders):
    """(builder, parameters, M MACs) from the package's own page: two of each family of names."""
    row = re.compile(
        r"\|[^|]+\|[^|]+\|[^|]+\| *([\d,]+) *\| *([\d,.]+)M *\|.*"
        r"/([a-z0-9_]+)-\d{4}-[0-9a-f]{8}\.pth"
    )
    families = defaultdict(dict)
    for line in metadata("pytorchcv").get_payload().splitlines():
        if (match := row.match(line)) and PYTORCHCV.fullmatch(match[3]) and match[3] in builders:
            sizes = int(match[1].replace(",", "")), float(match[2].replace(",", ""))
            families[re.match("[a-z_]+", match[3])[0]].setdefault(match[3], sizes)
    for family in families.values():
        for name in sorted({next(iter(family)), next(reversed(family))}):
            yield name, *family[name]


def test_pytorchcv(torchvision):  # which it imports
    model_provider = pytest.importorskip("pytorchcv.model_provider")
    checked, wrong = 0, {}
    for name, parameters, mega_macs in published_by_pytorchcv(model_provider._models):
        summary = summarize(lambda name=name: model_provider.get_model(name, pretrained=False))
        ratio = summary.macs / 1e6 / mega_macs
        if abs(ratio - 1) > 0.03 or summary.parameters != parameters:
            wrong[name] = ratio, summary.parameters - parameters
        checked += 1
    assert checked >= 70
    assert wrong == {}


def attention_layer(tokens, width, hidden, keys=None, gated=False):
    """MACs of a transformer layer: q, k, v and output; scores and values; the two or three
    products of the MLP. `keys` is the width of keys and values where heads are shared."""
    keys = keys or width
    projections = tokens * width * (2 * width + 2 * keys)
    return projections + 2 * tokens**2 * width + (3 if gated else 2) * tokens * width * hidden


def closed_form(transformers):
    """(model builder, inputs, MACs worked out from the configuration)"""
    t, n = transformers, 128
    ids = {"input_ids": torch.zeros(1, n, dtype=torch.int64, device="meta")}
    yield (
        lambda: t.GPT2LMHeadModel(t.GPT2Config()),
        ids,
        12 * attention_layer(n, 768, 3072) + n * 768 * 50257,
    )
    yield (
        lambda: t.BertModel(t.BertConfig()),
        ids,
        12 * attention_layer(n, 768, 3072) + 768 * 768,  # the pooler
    )
    yield (
        lambda: t.ViTModel(t.ViTConfig()),
        {"pixel_values": torch.empty(1, 3, 224, 224, device="meta")},
        196 * 768 * 768 + 12 * attention_layer(197, 768, 3072) + 768 * 768,
    )
    llama = t.LlamaConfig(num_hidden_layers=4, num_key_value_heads=8)
    yield (
        lambda: t.LlamaForCausalLM(llama),
        ids,
        4 * attention_layer(n, 4096, 11008, keys=1024, gated=True) + n * 4096 * 32000,
    )
    mixtral = t.MixtralConfig(num_hidden_layers=2)
    layer = attention_layer(n, 4096, 14336, keys=1024, gated=True)
    experts = 3 * n * 4096 * 14336  # two experts a token: once more
    yield (
        lambda: t.MixtralForCausalLM(mixtral),
        ids,
        2 * (layer + experts + n * 4096 * 8) + n * 4096 * 32000,
    )


def test_hugging_face(torchvision):
    transformers = pytest.importorskip("transformers")
    for build, inputs, macs in closed_form(transformers):
        summary = summarize(build, inputs)
        assert summary.macs == macs, summary.model
        assert summary.not_counted == ()


def test_timm_parameters(torchvision):
    timm = pytest.importorskip("timm")
    for name in (
        "vit_tiny_patch16_224",
        "convnext_atto",
        "efficientnet_b0",
        "swin_tiny_patch4_window7_224",
    ):
        model = timm.create_model(name)
        summary = summarize(lambda name=name: timm.create_model(name))
        assert summary.parameters == sum(p.numel() for p in model.parameters())
        assert summary.input_source == "declared"


def test_monai_runs_in_three_dimensions():
    nets = pytest.importorskip("monai.networks.nets")
    options = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    summary = summarize(lambda: nets.UNet(channels=(8, 16, 32), strides=(2, 2), **options))
    assert summary.macs and summary.input_source == "guessed"


LARGE = """
import resource, sys
import torch
sys.modules["torchvision"] = None  # transformers can do without, and it weighs
from transformers import LlamaConfig, LlamaForCausalLM
from ptools import summarize

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
config = LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                     num_attention_heads=64, num_key_value_heads=8, vocab_size=128256)
ids = torch.empty(1, 2048, dtype=torch.int64, device="meta")
summary = summarize(lambda: LlamaForCausalLM(config), {"input_ids": ids})
print(summary.parameters, summary.macs, before, peak())
"""


def test_seventy_billion_parameters_take_no_memory():
    """The process stays under 400 MiB, nearly all of it imports."""
    pytest.importorskip("transformers")
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    parameters, macs, imported, peak = map(int, done.stdout.split())
    layer = attention_layer(2048, 8192, 28672, keys=1024, gated=True)
    assert macs == 80 * layer + 2048 * 8192 * 128256
    assert parameters == 2 * 128256 * 8192 + 8192 + 80 * (
        8192 * (2 * 8192 + 2 * 1024) + 3 * 8192 * 28672 + 2 * 8192
    )
    assert peak - imported < 60 * 1024  # KiB
    assert peak < 400 * 1024 or imported > 370 * 1024


def test_the_largest_model_of_torchvision_is_as_published(torchvision):
    """regnet_y_128gf at 384 pixels: 644.8 M parameters, 374.57 GMACs."""
    summary = summarize(lambda: torchvision.models.regnet_y_128gf(), torch.empty(1, 3, 384, 384))
    assert math.isclose(summary.macs / 1e9, 374.57, abs_tol=0.01)
