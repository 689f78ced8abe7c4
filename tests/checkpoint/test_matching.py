import random
import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ptools.checkpoint.names.matching import Match, Shapes, match


def shapes(names: str) -> dict[str, tuple[int, ...]]:
    """Each name with a shape; `a.w:3x4` gives one."""
    pairs = (name.partition(":") for name in names.split())
    return {name: tuple(map(int, (shape or "2").split("x"))) for name, _, shape in pairs}


def fit(checkpoint: str, model: str) -> Match:
    return match(shapes(checkpoint), shapes(model))


def shapes_of(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("checkpoint", "model", "rule"),
    [
        ("module.b module.a", "b a", "module. removed"),
        ("module.module.b module.module.a", "b a", "module.module. removed"),
        ("_orig_mod.module.b _orig_mod.module.a", "b a", "_orig_mod.module. removed"),
        ("module._orig_mod.b module._orig_mod.a", "b a", "module._orig_mod. removed"),
        (
            "_fsdp_wrapped_module.b _fsdp_wrapped_module.a._fsdp_wrapped_module.w",
            "b a.w",
            "_fsdp_wrapped_module. and *._fsdp_wrapped_module. removed",
        ),
        ("b._checkpoint_wrapped_module.w a", "b.w a", "*._checkpoint_wrapped_module. removed"),
        ("enc._orig_mod.w head.w", "enc.w head.w", "*._orig_mod. removed"),
        ("features.module.0.w fc.w", "features.0.w fc.w", "*.module. removed"),
        ("module.w head.w", "module.w head.w", "nothing"),
        ("my_module.w", "my_module.w", "nothing"),
        ("module.w w", "w", "nothing"),
        ("module.w w", "module.w w", "nothing"),
        ("n_averaged module.b module.a", "b a", "module. removed, n_averaged left out"),
        ("n_averaged module.module.a", "a", "module.module. removed, n_averaged left out"),
        ("model.a loss_fn.w", "a", "model. removed"),
        ("module.b module.c module.a", "b c a", "module. removed"),
    ],
)
def test_a_model_settles_the_names(checkpoint: str, model: str, rule: str) -> None:
    found = fit(checkpoint, model)
    assert found.rule == rule
    assert found.complete
    assert found.matched == len(model.split())
    assert [name for name in found.names.values() if name in shapes(model)] == model.split()
    left_out = {"n_averaged"} & set(checkpoint.split())
    assert list(found.names) == [name for name in checkpoint.split() if name not in left_out]


@pytest.mark.parametrize(
    ("checkpoint", "model", "rule"),
    [
        ("a.w b.w", "backbone.a.w backbone.b.w", "backbone. added"),
        ("enc.a.w enc.b.w fc.w", "body.a.w body.b.w fc.w", "enc. replaced by body."),
        ("enc.a enc.b", "body.net.a body.net.b", "enc. replaced by body.net."),
        ("module.model.a module.model.b", "a b", "module.model. removed"),
        ("_orig_mod.a _orig_mod.b", "module.a module.b", "_orig_mod. replaced by module."),
        ("enc.w fc.w", "enc._orig_mod.w fc.w", "*._orig_mod. added"),
        ("l.0.module.w l.1.module.w", "l.0.module.w l.1.module.w", "nothing"),
        ("l.0.module.w l.1.module.w", "l.0.w l.1.w", "*.module. removed"),
        ("module.l.0.module.w module.l.1.module.w", "l.0.module.w l.1.module.w", "module. removed"),
        ("module.module.w module.head.w", "module.w head.w", "module. removed"),
        ("n_averaged module.a", "n_averaged module.a", "nothing"),
        ("a", "a b", "nothing"),
    ],
)
def test_a_rule_is_said(checkpoint: str, model: str, rule: str) -> None:
    found = fit(checkpoint, model)
    assert found.rule == rule
    assert not found.unexpected
    assert not found.mismatched


def test_unexpected_names_stay() -> None:
    found = fit("model.a loss_fn.w", "a")
    assert found.names == {"model.a": "a", "loss_fn.w": "loss_fn.w"}
    assert found.unexpected == ("loss_fn.w",)
    both = fit("module.w w", "w")
    assert both.names == {"module.w": "module.w", "w": "w"}
    assert both.unexpected == ("module.w",)


def test_what_is_missing_or_of_another_shape_is_listed() -> None:
    found = fit("module.a:2x3 module.fc.weight:1000x8", "a:2x3 fc.weight:10x8 fc.bias:10")
    assert found.mismatched == (("fc.weight", (1000, 8), (10, 8)),)
    assert found.missing == ("fc.bias",)
    assert not found.complete
    assert found.matched == 1


def test_names_alone_count_where_no_shape_agrees() -> None:
    assert fit("module.a:3", "a:4").mismatched == (("a", (3,), (4,)),)


def test_shapes_decide_between_branches() -> None:
    found = fit("big.a:9 big.b:9 small.a:3 small.b:3", "a:3 b:3")
    assert found.rule == "small. removed"
    assert found.unexpected == ("big.a", "big.b")


def test_the_first_of_equal_branches_is_taken_and_the_other_named() -> None:
    found = fit("student.a student.b teacher.a teacher.b", "a b")
    assert found.rule == "student. removed (as good: teacher. removed)"
    assert found.unexpected == ("teacher.a", "teacher.b")
    assert fit("teacher.a student.a", "a").rule == "teacher. removed (as good: student. removed)"


def test_near_names_are_pointed_out() -> None:
    found = fit(
        "conv.w stem.bn.w fc.weight:10x8 fc.bias:10",
        "conv.w stem.bn.w x.w y.w z.w head.weight:10x8 head.bias:10 other.thing:7",
    )
    assert found.rule == "nothing"
    assert found.near["fc.weight"] == "head.weight"
    assert found.near["head.bias"] == "fc.bias"
    assert "other.thing" not in found.near


def test_a_neighbour_is_not_moved_into_a_gap() -> None:
    layers = [f"layers.{i}.{name}" for i in range(6) for name in ("weight", "bias")]
    found = fit(" ".join(layers[2:]), " ".join(layers[:-2]))
    assert found.rule == "nothing"
    assert found.matched == 8


def test_unrelated_names_stay_as_they_are() -> None:
    found = fit(
        "conv1.weight:64x3x7x7 bn1.weight:64 bn1.bias:64 layer1.0.conv1.weight fc.weight fc.bias",
        "embed.weight:9x9 " + " ".join(f"blocks.{i}.norm.weight:64" for i in range(40)),
    )
    assert found.rule == "nothing"
    assert found.matched == 0


def test_nothing_fits_nothing() -> None:
    assert match({}, {}).complete
    assert match({}, shapes("a")).missing == ("a",)
    assert match(shapes("module.a"), {}).names == {"module.a": "module.a"}


def test_real_wrappers_fit_each_other() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    compiled: Any = torch.compile(net())
    models = [net(), nn.DataParallel(net()), compiled, nn.DataParallel(AveragedModel(net()))]
    for source in models:
        for target in models[:3]:
            found = match(shapes_of(source), shapes_of(target))
            assert found.complete
            assert not found.unexpected


def test_a_backbone_finds_its_place(torchvision: Any) -> None:
    with torch.device("meta"):
        whole = torchvision.models.resnet18()
        names = shapes_of(whole)
        detector = shapes_of(nn.ModuleDict({"backbone": whole, "neck": nn.Conv2d(3, 3, 1)}))
    added = match({f"module.{name}": shape for name, shape in names.items()}, detector)
    assert added.rule == "module. replaced by backbone."
    assert added.missing == ("neck.weight", "neck.bias")
    removed = match(detector, names)
    assert removed.rule == "backbone. removed"
    assert removed.complete


@pytest.mark.parametrize("front", ["", "module.", "model.net.", "module.layers.0.module."])
def test_thousands_of_names_are_quick(front: str) -> None:
    names = [f"layers.{i}.{part}.w" for i in range(1000) for part in "qkv"]
    checkpoint = {f"{front}{name}": (2,) for name in names}
    model = dict.fromkeys(names, (2,))
    start = time.perf_counter()
    assert match(checkpoint, model).complete
    assert match(model, checkpoint).complete
    assert not match({f"{name}x": (2,) for name in names}, model).matched
    assert time.perf_counter() - start < 5  # seconds; about 0.5 alone


def test_hostile_names_are_survived() -> None:
    deep = "module." * 50_000 + "w"
    assert match({deep: (2,)}, {"w": (2,)}).complete
    assert match({"a" * 1_000_000: (2,)}, {"a" * 999_999: (2,)}).matched == 0


def test_any_names_stay_apart_and_in_order() -> None:
    rng = random.Random(0)
    elements = "module _orig_mod n_averaged model a b 0 w backbone".split()

    def some() -> dict[str, tuple[int, ...]]:
        paths = [rng.choices(elements, k=rng.randint(1, 4)) for _ in range(rng.randint(0, 6))]
        return {".".join(path): (rng.randint(1, 2),) for path in paths}

    for _ in range(2000):
        checkpoint, model = some(), some()
        found = match(checkpoint, model)
        assert list(found.names) == [name for name in checkpoint if name in found.names]
        assert len(set(found.names.values())) == len(found.names)
        assert all(name.endswith("n_averaged") for name in checkpoint.keys() - found.names.keys())
        assert found.matched >= len(checkpoint.items() & model.items())
