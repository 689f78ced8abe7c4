"""What a model takes: written, declared, guessed."""

import pytest
import torch
from torch import nn

from ptools import guess, inputs


def candidates(text, model):
    return [str(c) for c in guess.given(inputs.parse([text]), model)]


def test_a_missing_batch_is_added_where_the_first_layer_says_so():
    assert candidates("3x8x8", nn.Conv2d(3, 4, 1)) == ["1x3x8x8"]
    assert candidates("3x8x8", type("Padded", (nn.Conv2d,), {})(3, 4, 1)) == ["1x3x8x8"]
    assert candidates("2x3x8x8", nn.Conv2d(3, 4, 1)) == ["2x3x8x8"]
    assert candidates("4x100", nn.Sequential(nn.Conv1d(4, 4, 1))) == ["1x4x100"]
    assert candidates("8", nn.Linear(8, 8)) == ["8", "1x8"]
    assert candidates("x=8", nn.Linear(8, 8)) == ["x=8"]


@pytest.mark.parametrize(
    ("layer", "shape", "dtype"),
    [
        (nn.Conv2d(4, 8, 3), (1, 4, 224, 224), torch.float32),
        (nn.Conv1d(2, 8, 3), (1, 2, 1024), torch.float32),
        (nn.ConvTranspose3d(2, 8, 3), (1, 2, 16, 112, 112), torch.float32),
        (nn.Linear(5, 2), (1, 5), torch.float32),
        (nn.Embedding(10, 4), (1, 128), torch.int64),
        (nn.GRU(6, 4), (1, 16, 6), torch.float32),
    ],
)
def test_the_first_guess_comes_from_the_first_layer(layer, shape, dtype):
    model = nn.Sequential(nn.BatchNorm1d(3), layer, nn.Linear(99, 99))
    first = next(guess.guesses(model))
    (spec,) = guess.in_its_dtype(first, model).specs()
    assert (spec.shape, spec.dtype) == (shape, dtype)


def test_guesses_end_and_do_not_repeat():
    found = [found.specs()[0].shape for found in guess.guesses(nn.Conv2d(3, 8, 3))]
    assert len(found) == len(set(found)) < 40


def test_a_subclassed_convolution_is_one():
    class Padded(nn.Conv2d):
        pass

    assert next(guess.guesses(Padded(1, 8, 3))).specs()[0].shape == (1, 1, 224, 224)


def test_hugging_face_inputs_come_from_the_config(torchvision):  # transformers imports it
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                                    intermediate_size=8, image_size=64)  # fmt: skip
    found = guess.declared(transformers.ViTModel(config), {})
    assert str(found) == "pixel_values=1x3x64x64"
    assert "ViTConfig" in found.origin
