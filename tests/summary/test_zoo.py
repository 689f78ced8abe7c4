"""Whole model zoos against published tables and closed forms: the figures that ptools promises."""

import pytest
import torch

from ptools.summary import summarize

pytestmark = pytest.mark.slow


def classification_weights(torchvision):
    """(builder name, the published entry of its first weights) for every classification model."""
    models = torchvision.models
    for name in models.list_models(module=models):
        weights = next(iter(models.get_model_weights(name)))
        yield name, weights


def build(torchvision, name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return lambda: torchvision.models.get_model(name, weights=None, **options)


def test_torchvision_classification(torchvision):
    """Every MAC count equals the published `_ops` (GMACs, 3 decimals), parameters `num_params`."""
    checked = 0
    wrong_macs, wrong_parameters = {}, {}
    for name, weights in classification_weights(torchvision):
        crop = weights.transforms.keywords["crop_size"]
        size = max(crop, weights.meta["min_size"][0])
        model = build(torchvision, name)
        if name == "vit_h_14":
            model = lambda: torchvision.models.vit_h_14(image_size=crop)  # noqa: B023, E731
        summary = summarize(model, torch.empty(1, 3, size, size, device="meta"))
        if f"{summary.macs / 1e9:.3f}" != f"{weights.meta['_ops']:.3f}":
            wrong_macs[name] = summary.macs / 1e9, weights.meta["_ops"]
        if summary.parameters != weights.meta["num_params"]:
            wrong_parameters[name] = summary.parameters, weights.meta["num_params"]
        checked += 1
    assert checked == 80
    assert wrong_macs == {}
    # The published count leaves out the auxiliary classifiers that the builder makes.
    assert set(wrong_parameters) == {"googlenet"}
