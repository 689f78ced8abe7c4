"""The advice says what to write instead, in the words of the line that is wrong."""

from __future__ import annotations

import pytest

from ptools.debug.inplace.advice import Change, of_change, of_error
from ptools.program.places import Place


def at(source: str) -> Place:
    return Place(file="train.py", line=1, function="main", source=source)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Change("add_", at("h += y")), "write h = h + y"),
        (Change("mul_", at("x *= a + b")), "write x = x * (a + b)"),
        (Change("add_", at("self.h += f(x)")), "write self.h = self.h + f(x)"),
        (Change("copy_", at("out[i] = h")), "torch.stack"),
        (Change("add_", at("out[i] += h")), "torch.stack"),
        (Change("index_put_", at("y[mask] = 0")), "torch.where"),
        (Change("relu_", at("x = act(x)"), module="Net.act"), "inplace=False in Net.act"),
        (Change("relu_", at("x = F.relu(x, inplace=True)")), "leave out inplace=True"),
        (Change("clamp_", at("y.clamp_(0, 1)")), "use .clamp(...)"),
        (Change("add_", at("opt.step()"), optimizer="Adam"), "before the optimizer's step"),
        (Change("copy_", at("net(x)"), tensor="buffer"), "broadcast_buffers=False"),
        (Change("embedding_renorm_", at("e(i)"), tensor="parameter"), "max_norm"),
        (Change("clamp_", at("w.clamp_(0)"), tensor="parameter"), "after the backward"),
        (Change("mul_", at("y.data.mul_(2)"), seen=False), "detach().clone()"),
        (Change("", None, seen=False), "array.copy()"),
        (Change("fill_", at("torch.full_like(")), "x = x.clone()"),
    ],
)
def test_each_class_of_change_has_its_own_advice(change: Change, words: str) -> None:
    assert words in of_change(change)


def test_other_errors_of_the_family_are_explained_and_no_others() -> None:
    leaf = "a leaf Variable that requires grad is being used in an in-place operation."
    assert "no_grad" in (of_error(f"RuntimeError: {leaf}") or "")
    assert of_error("RuntimeError: mat1 and mat2 shapes cannot be multiplied") is None
