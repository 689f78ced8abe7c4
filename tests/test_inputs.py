"""Inputs as they are written, and as values."""

import pytest
import torch

from ptools import inputs
from ptools.errors import UsageError
from ptools.inputs import Inputs, TensorSpec


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["3x224x224"], "3x224x224"),
        (["3,224,224"], "3x224x224"),
        (["7"], "7"),
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


def test_values_become_specs_and_are_made_again():
    value = {"x": torch.ones(2, 3), "n": 4, "more": [torch.zeros(1, dtype=torch.int64)]}
    found = inputs.from_value(value, "given", "test")
    assert str(found) == "x=2x3 float32, n=4, more=[1 int64]"
    args, kwargs = found.make(lambda spec: torch.empty(spec.shape, dtype=spec.dtype))
    assert args == ()
    assert kwargs["n"] == 4
    assert kwargs["more"][0].dtype == torch.int64


def test_batch_and_dtype():
    found = Inputs(
        (TensorSpec((1, 3), torch.float32), TensorSpec((1, 5), torch.int64)), {}, "given", "test"
    )
    assert str(found.with_batch(7)) == "7x3 float32, 7x5 int64"
    assert str(found.with_dtype(torch.float16)) == "1x3 float16, 1x5 int64"
