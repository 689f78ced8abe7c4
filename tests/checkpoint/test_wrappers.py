import random
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ptools.checkpoint.names.wrappers import rename_prefixes, unwrap

SURE = {
    "DDP": ("module.b module.a", "b a"),
    "DDP twice": ("module.module.b module.module.a", "b a"),
    "compiled DDP": ("_orig_mod.module.b _orig_mod.module.a", "b a"),
    "DDP of compiled": ("module._orig_mod.b module._orig_mod.a", "b a"),
    "nested FSDP": (
        "_fsdp_wrapped_module.b _fsdp_wrapped_module.a._fsdp_wrapped_module.w",
        "b a.w",
    ),
    "activation checkpoint": ("b._checkpoint_wrapped_module.w a.w", "b.w a.w"),
    "a compiled part": ("enc._orig_mod.w head.w", "enc.w head.w"),
    "old VGG": ("features.module.0.w classifier.0.w", "features.0.w classifier.0.w"),
    "a real child called module": ("module.w head.w", "module.w head.w"),
    "a longer name": ("my_module.w", "my_module.w"),
    "AveragedModel": ("n_averaged module.b module.a", "- b a"),
    "AveragedModel of DDP": ("n_averaged module.module.b module.module.a", "- b a"),
    "order": ("module.b module.c module.a", "b c a"),
}
AMBIGUOUS = {
    "with and without": "module.w w",
    "Lightning": "model.a loss_fn.w",
    "numbered blocks": "layers.0.module.w layers.1.module.w",
    "repeated blocks": "enc.attention.module.w enc.mlp.module.w",
    "private name taken": "a._orig_mod.w a.w",
    "own tensors": "a.module.w a.module",
    "a counter beside tensors": "n_averaged module.w w",
    "a counter, and tensors of its own": "a a.n_averaged a.module.w",
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.dropout = nn.Dropout()
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(1))


def compiled(model: nn.Module) -> Any:
    return torch.compile(model)


def with_compiled_stem(model: Net) -> Net:
    model.stem = compiled(model.stem)
    return model


def with_parallel_stem(model: Net) -> Net:
    model.stem = nn.DataParallel(model.stem)  # type: ignore[assignment]
    return model


WRAPPED: dict[str, Callable[[Net], Any]] = {
    "DataParallel": nn.DataParallel,
    "compile": compiled,
    "AveragedModel": AveragedModel,
    "compiled DataParallel": lambda model: compiled(nn.DataParallel(model)),
    "DataParallel of compiled": lambda model: nn.DataParallel(compiled(model)),
    "AveragedModel of DataParallel": lambda model: AveragedModel(nn.DataParallel(model)),
    "AveragedModel of compiled": lambda model: AveragedModel(compiled(model)),
    "compiled AveragedModel": lambda model: compiled(AveragedModel(model)),
    "a compiled part": with_compiled_stem,
    "a parallel part": with_parallel_stem,
    "a parallel part, parallel": lambda model: nn.DataParallel(with_parallel_stem(model)),
    "a compiled part, compiled": lambda model: compiled(with_compiled_stem(model)),
}


def kept(names: dict[str, str | None]) -> list[str]:
    return [new for new in names.values() if new is not None]


@pytest.mark.parametrize("case", SURE)
def test_sure_wrappers_go_and_order_stays(case: str) -> None:
    before, after = SURE[case]
    found = unwrap(before.split())
    assert list(found.names) == before.split()
    assert [new or "-" for new in found.names.values()] == after.split()
    assert not found.left


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_ambiguous_names_are_untouched(case: str) -> None:
    names = AMBIGUOUS[case].split()
    assert kept(unwrap(names).names) == names


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("module.w w", "'module.' stays: without it, two tensors would have the same name"),
        ("a._orig_mod.w a.w", "'a._orig_mod.' stays: without it, two tensors"),
        ("module.layers.0.module.w module.b", "'layers.0.module.' stays: it may be a wrapper's"),
        ("l.0.module.w l.1.module.w l.2.module.w", "'l.0.module.' (and 2 more like it) stays"),
    ],
)
def test_what_stays_is_told(names: str, sentence: str) -> None:
    (left,) = unwrap(names.split()).left
    assert left.startswith(sentence)


def test_a_real_child_called_module_is_not_worth_a_word() -> None:
    assert not unwrap(["module.w", "head.w"]).left
    assert not unwrap(["a.module.w", "a.w"]).left


def test_counts_tell_what_was_removed() -> None:
    names = "module.a._orig_mod.w module.a._orig_mod.b module.c._orig_mod.d._orig_mod.w module.e"
    assert unwrap(names.split()).counts == {"module.": 4, "*._orig_mod.": 3}
    assert unwrap(["_orig_mod.module.a"]).counts == {"_orig_mod.module.": 1}
    assert unwrap(["a.w"]).counts == {}


@pytest.mark.parametrize("name", ["_forward_module", "_dmp_wrapped_module", "_fpw_module"])
def test_private_names_go_anywhere(name: str) -> None:
    found = unwrap([f"{name}.a.w", f"{name}.b.0.{name}.w", f"{name}.b.1.{name}.w"])
    assert kept(found.names) == ["a.w", "b.0.w", "b.1.w"]


def test_opacus_is_unwrapped() -> None:
    assert kept(unwrap(["_module.a.w", "_module.b.w"]).names) == ["a.w", "b.w"]


def test_an_averaged_part_is_unwrapped() -> None:
    names = ["net.w", "ema.n_averaged", "ema.module.w", "emas.0.n_averaged", "emas.0.module.w"]
    assert kept(unwrap(names).names) == ["net.w", "ema.w", "emas.0.w"]


def test_a_counter_alone_stays() -> None:
    assert kept(unwrap(["n_averaged", "a.w"]).names) == ["n_averaged", "a.w"]


@pytest.mark.parametrize("name", ["", ".", "module", "module.", "a..b", "_orig_mod", "averaged"])
def test_odd_names_survive(name: str) -> None:
    assert len(kept(unwrap([name, "module.a.w"]).names)) == 2
    assert len(kept(unwrap([name]).names)) == 1


@pytest.mark.parametrize("case", WRAPPED)
def test_real_wrappers_come_off(case: str) -> None:
    wrapped = WRAPPED[case](Net()).state_dict()
    found = unwrap(wrapped)
    assert kept(found.names) == list(Net().state_dict())
    assert not found.left


@pytest.mark.parametrize("case", WRAPPED)
def test_metadata_follows(case: str) -> None:
    plain: Any = Net().state_dict()
    wrapped = WRAPPED[case](Net()).state_dict()
    renamed = rename_prefixes(wrapped._metadata, unwrap(wrapped).names)
    found = {new: wrapped._metadata[old] for old, new in renamed.items() if new is not None}
    assert found == plain._metadata
    assert list(renamed) == list(wrapped._metadata)


def test_metadata_follows_other_renamings() -> None:
    names = {"model.a.w": "a.w", "model.b.0.w": "b.0.w", "loss.w": "loss.w"}
    prefixes = ["", "model", "model.a", "model.b", "model.b.0", "model.b.act", "loss", "loss.act"]
    assert rename_prefixes(prefixes, names) == {
        "": None,
        "model": "",
        "model.a": "a",
        "model.b": "b",
        "model.b.0": "b.0",
        "model.b.act": "b.act",
        "loss": "loss",
        "loss.act": "loss.act",
    }
    added = rename_prefixes(["", "bn", "act"], {"bn.weight": "net.bn.weight"})
    assert added == {"": "net", "bn": "net.bn", "act": "net.act"}
    replaced = rename_prefixes(["", "a", "a.b"], {"a.b.w": "x.y.b.w", "c": "c"})
    assert replaced == {"": "", "a": "x.y", "a.b": "x.y.b"}
    assert rename_prefixes(["", "a"], {}) == {"": "", "a": "a"}


def test_old_vgg_names(torchvision: Any) -> None:
    with torch.device("meta"):
        names = list(torchvision.models.vgg16().state_dict())
    wrapped = [name.replace("features.", "features.module.") for name in names]
    assert kept(unwrap(wrapped).names) == names
    assert kept(unwrap(f"module.{name}" for name in wrapped).names) == names


@pytest.mark.parametrize(
    "name", ["resnet50", "densenet121", "vit_b_16", "swin_t", "convnext_tiny", "mobilenet_v3_small"]
)
def test_models_without_wrappers_stay_as_they_are(name: str, torchvision: Any) -> None:
    with torch.device("meta"):
        names = list(torchvision.models.get_model(name, weights=None).state_dict())
    assert unwrap(names).names == dict(zip(names, names, strict=True))
    assert kept(unwrap(f"module.{name}" for name in names).names) == names


def test_any_names_stay_apart_in_order_and_settled() -> None:
    rng = random.Random(0)
    elements = "module module _module _orig_mod _forward_module n_averaged layers a b 0 w".split()
    for _ in range(5000):
        paths = [rng.choices(elements, k=rng.randint(1, 6)) for _ in range(rng.randint(1, 6))]
        names = list(dict.fromkeys(".".join(path) for path in paths))
        found = unwrap(names).names
        assert list(found) == names
        assert len(set(kept(found))) == len(kept(found))
        lost = [name for name, new in found.items() if new is None]
        assert all(name.split(".")[-1] == "n_averaged" for name in lost)
        assert kept(unwrap(kept(found)).names) == kept(found)


@pytest.mark.parametrize("path", ["a.", "module.", "a.module.", "a._orig_mod.", "."])
def test_hostile_depth_is_survived(path: str) -> None:
    name = path * 50_000 + "w"
    found = unwrap([name, "b"])
    assert len(kept(found.names)) == 2
    assert sum(map(len, found.left)) < 1000
    assert len(rename_prefixes([path * 50_000 + "x", ""], found.names)) == 2


def test_many_names_are_quick() -> None:
    names = [f"module.layers.{i}.{part}.weight" for i in range(10_000) for part in "abcde"]
    start = time.perf_counter()
    assert len(unwrap(names).names) == 50_000
    assert time.perf_counter() - start < 5  # seconds; about 0.5 alone
