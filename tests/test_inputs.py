"""Inputs that are written, declared or guessed."""

import pytest
import torch
from torch import nn

from ptools import inputs
from ptools.errors import UsageError
from ptools.inputs import Inputs, TensorSpec


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["3x224x224"], "3x224x224 float32"),
        (["3,224,224"], "3x224x224 float32"),
        (["7"], "7 float32"),
        (["1x128:int64"], "1x128 int64"),
        (["1x3:bf16", "2x2:fp16"], "1x3 bfloat16, 2x2 float16"),
        (["ids=1x128:int64", "mask=1x128:bool"], "ids=1x128 int64, mask=1x128 bool"),
    ],
)
def test_parse(texts, expected):
    parsed = inputs.parse(texts)
    assert str(parsed) == expected
    assert parsed.source == "given"


@pytest.mark.parametrize(
    "text", ["", "3x", "x3", "3*4", "a=", "3x4:float31", "3x0", "-1x3", "3 x 4"]
)
def test_parse_refuses(text):
    with pytest.raises(UsageError):
        inputs.parse([text])


def test_parse_refuses_a_name_twice():
    with pytest.raises(UsageError, match="twice"):
        inputs.parse(["x=3", "x=4"])


def candidates(text, model):
    return [str(c) for c in inputs.given(inputs.parse([text]), model)]


def test_a_missing_batch_is_added_where_the_first_layer_says_so():
    assert candidates("3x8x8", nn.Conv2d(3, 4, 1)) == ["1x3x8x8 float32"]
    assert candidates("2x3x8x8", nn.Conv2d(3, 4, 1)) == ["2x3x8x8 float32"]
    assert candidates("4x100", nn.Sequential(nn.Conv1d(4, 4, 1))) == ["1x4x100 float32"]
    assert candidates("8", nn.Linear(8, 8)) == ["8 float32", "1x8 float32"]
    assert candidates("x=8", nn.Linear(8, 8)) == ["x=8 float32"]


def test_values_become_specs_and_are_made_again():
    value = {"x": torch.ones(2, 3), "n": 4, "more": [torch.zeros(1, dtype=torch.int64)]}
    found = inputs.from_value(value, "given", "test")
    assert str(found) == "x=2x3 float32, n=4, more=[1 int64]"
    args, kwargs = found.make(lambda spec: torch.empty(spec.shape, dtype=spec.dtype))
    assert args == ()
    assert kwargs["n"] == 4
    assert kwargs["more"][0].dtype == torch.int64


def test_batch_and_dtype():
    found = Inputs((TensorSpec((1, 3)), TensorSpec((1, 5), torch.int64)), {}, "given", "test")
    assert str(found.with_batch(7)) == "7x3 float32, 7x5 int64"
    assert str(found.with_dtype(torch.float16)) == "1x3 float16, 1x5 int64"


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
    (spec,) = next(inputs.guesses(model)).specs()
    assert (spec.shape, spec.dtype) == (shape, dtype)


def test_guesses_end_and_do_not_repeat():
    found = [guess.specs()[0].shape for guess in inputs.guesses(nn.Conv2d(3, 8, 3))]
    assert len(found) == len(set(found)) < 40


def test_a_subclassed_convolution_is_one():
    class Padded(nn.Conv2d):
        pass

    assert next(inputs.guesses(Padded(1, 8, 3))).specs()[0].shape == (1, 1, 224, 224)


def test_hugging_face_inputs_come_from_the_config(torchvision):  # transformers imports it
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                                    intermediate_size=8, image_size=64)  # fmt: skip
    found = inputs.declared(transformers.ViTModel(config), {})
    assert str(found) == "pixel_values=1x3x64x64 float32"
    assert "ViTConfig" in found.origin
