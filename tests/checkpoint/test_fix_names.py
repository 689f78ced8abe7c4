"""How names change: the ordinary cases, with the model and without, and the user's own wishes."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ptools.checkpoint import fix_ckpt
from ptools.errors import PtoolsError, UsageError

# What is saved, and what the model calls it; a name is a path through modules.
SURE = {
    "DDP": ("module.a.w module.b.w", "a.w b.w"),
    "DDP twice": ("module.module.a.w", "a.w"),
    "compiled DDP": ("_orig_mod.module.a.w", "a.w"),
    "DDP of compiled": ("module._orig_mod.a.w", "a.w"),
    "nested FSDP": ("_fsdp_wrapped_module.a._fsdp_wrapped_module.w", "a.w"),
    "activation checkpoint": ("a._checkpoint_wrapped_module.w b.w", "a.w b.w"),
    "a compiled part": ("enc._orig_mod.w head.w", "enc.w head.w"),
    "old VGG": ("features.module.0.w classifier.0.w", "features.0.w classifier.0.w"),
    "a real child called module": ("module.w head.w", "module.w head.w"),
    "a longer name": ("my_module.w", "my_module.w"),
    "AveragedModel": ("n_averaged module.a.w", "a.w"),
    "AveragedModel of DDP": ("n_averaged module.module.a.w", "a.w"),
    "order": ("module.b.w module.c.w module.a.w", "b.w c.w a.w"),
}
UNSURE = {
    "both": ("module.w w", "w"),
    "Lightning": ("model.a.w model.b.w loss_fn.w", "a.w b.w"),
}
NO_PART = ("n_averaged", "loss_fn.w", "module.w")  # of the model


def module_of(names: str) -> nn.Module:
    """A module whose state_dict has these names."""
    root = nn.Module()
    for name in names.split():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.randn(2)))
    return root


def save(names: str, path: str = "x.pt") -> dict[str, torch.Tensor]:
    state = OrderedDict((name, torch.randn(2)) for name in names.split())
    torch.save(state, path)
    return state


def loaded(path: str) -> Any:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("case", SURE | UNSURE)
def test_with_the_model_every_case_loads_strictly(folder: Path, case: str) -> None:
    names, wanted = (SURE | UNSURE)[case]
    state, model = save(names), module_of(wanted)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = fix_ckpt("x.pt", "y.pt", model=model)
    assert report.match is not None and report.match.complete and not report.match.unexpected
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    found = loaded("y.pt")
    assert list(found) == wanted.split()
    model.load_state_dict(found)
    kept = [state[name] for name in state if name not in NO_PART or name in wanted]
    assert all(torch.equal(*both) for both in zip(found.values(), kept, strict=True))


@pytest.mark.parametrize("case", SURE)
def test_without_the_model_what_is_sure_is_right(folder: Path, case: str) -> None:
    names, wanted = SURE[case]
    state = save(names)
    fix_ckpt("x.pt", "y.pt")
    found = loaded("y.pt")
    assert list(found) == wanted.split()
    kept = [value for name, value in state.items() if name != "n_averaged"]
    assert all(torch.equal(*both) for both in zip(found.values(), kept, strict=True))


@pytest.mark.parametrize("case", UNSURE)
def test_without_the_model_what_is_unsure_stays(folder: Path, case: str) -> None:
    names, _ = UNSURE[case]
    save(names)
    fix_ckpt("x.pt", "y.pt")
    assert list(loaded("y.pt")) == names.split()


def test_metadata_goes_along_with_the_names(folder: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    wrapped: Any = nn.DataParallel(torch.compile(model))
    torch.save(wrapped.state_dict(), "x.pt")
    fix_ckpt("x.pt", "y.pt")
    assert loaded("y.pt")._metadata == model.state_dict()._metadata


def test_prefixes_are_stripped_on_demand(folder: Path) -> None:
    save("module.model.a.w module.model.b.w module.loss.w")
    report = fix_ckpt("x.pt", "y.pt", strip=["model"])
    assert list(loaded("y.pt")) == ["a.w", "b.w", "loss.w"]
    assert sum(renaming.count for renaming in report.renamed) == 3
    fix_ckpt("x.pt", "z.pt", strip=["none"])
    assert list(loaded("z.pt")) == ["module.model.a.w", "module.model.b.w", "module.loss.w"]
    fix_ckpt("x.pt", "w.pt", strip=["module.model.", "none"])
    assert list(loaded("w.pt")) == ["a.w", "b.w", "module.loss.w"]


def test_names_are_rewritten_by_expressions_in_turn(folder: Path) -> None:
    save("module.layers.0.gamma module.layers.1.gamma")
    fix_ckpt("x.pt", "y.pt", rename=[r"layers\.(\d)=blocks.\1", "gamma$=weight"])
    assert list(loaded("y.pt")) == ["blocks.0.weight", "blocks.1.weight"]


def test_two_tensors_never_get_one_name(folder: Path) -> None:
    save("a.w b.w a.v b.v")
    with pytest.raises(PtoolsError) as error:
        fix_ckpt("x.pt", "y.pt", rename=["^[ab]=c"])
    assert str(error.value) == "several tensors would be called 'c.w' (and 1 more such name)"
    assert "a.w and b.w" in (error.value.hint or "")
    with pytest.raises(PtoolsError, match=r"would be called 'c\.v'$"):
        fix_ckpt("x.pt", "y.pt", rename=["^[ab]=c"], drop=["c.w"])
    assert not Path("y.pt").exists()


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"strip": ["modle"]}, "no name starts with 'modle.'", "they start with enc., head."),
        ({"rename": ["hed=fc"]}, "no name matches 'hed'", "there is, for example, 'enc.a.w'"),
        ({"rename": ["head"]}, "cannot read --rename 'head'", "write 'REGEX=REPLACEMENT'"),
        ({"rename": ["(=x"]}, "is no regular expression", None),
        ({"rename": [r"head=\1"]}, "is no regular expression", None),
        ({"drop": ["hed"]}, "nothing is called 'hed'", "did you mean 'head'?"),
        ({"drop": ["head.wt"]}, "nothing is called 'head.wt'", "did you mean 'head.w'?"),
        ({"keep": ["optim"]}, "nothing is called 'optim'", "did you mean 'optimizer'?"),
    ],
)
def test_a_wish_that_fits_nothing_is_an_error(
    folder: Path, options: dict[str, Any], message: str, hint: str | None
) -> None:
    state = {name: torch.ones(2) for name in ("enc.a.w", "head.w")}
    torch.save({"model": state, "optimizer": {"state": {}}}, "x.pt")
    with pytest.raises(UsageError) as error:
        fix_ckpt("x.pt", "y.pt", **options)
    assert message in str(error.value)
    assert error.value.hint == hint


def test_a_doubtful_wrapper_stays_and_the_note_tells_how_to_remove_it(folder: Path) -> None:
    save("layers.0.module.w layers.1.module.w")
    (note,) = fix_ckpt("x.pt").notes
    assert "'layers.0.module.' (and 1 more like it) stays" in note
    option = r"\.module\.=."
    assert f"--rename '{option}' removes it" in note
    fix_ckpt("x.pt", "y.pt", rename=[option])
    assert list(loaded("y.pt")) == ["layers.0.w", "layers.1.w"]


def test_a_model_that_fits_partly_is_reported_with_the_nearest_names(folder: Path) -> None:
    torch.save({"enc.weight": torch.ones(2), "head.w": torch.ones(3), "x": torch.ones(2)}, "x.pt")
    model = module_of("enc.weights head.w x")
    report = fix_ckpt("x.pt", "y.pt", model=model)
    match = report.match
    assert match is not None and not match.complete
    assert (match.matched, match.missing, match.unexpected) == (
        1,
        ("enc.weights",),
        ("enc.weight",),
    )
    assert match.mismatched == (("head.w", (3,), (2,)),)
    assert match.near == {"enc.weights": "enc.weight", "enc.weight": "enc.weights"}
    assert list(loaded("y.pt")) == ["enc.weight", "head.w", "x"]


def test_a_model_that_does_not_fit_at_all_is_an_error(folder: Path) -> None:
    save("module.a.weight module.b.weight")
    with pytest.raises(PtoolsError, match="nothing in it fits the model") as error:
        fix_ckpt("x.pt", "y.pt", model=module_of("layer.kernel"))
    assert "layer.kernel" in str(error.value)
    assert error.value.exit_code == 1
    assert not Path("y.pt").exists()


def test_what_the_model_lacks_is_left_out_once_it_is_full(folder: Path) -> None:
    save("model.a.w model.b.w loss.w")
    report = fix_ckpt("x.pt", "y.pt", model={"a.w": (2,), "b.w": (2,)})
    assert report.match is not None and report.match.complete
    assert report.match.unexpected == ()
    assert report.left_out == ("loss.w",)


def test_with_a_model_the_weights_that_fit_it_are_taken(folder: Path) -> None:
    generator, critic = module_of("a.w b.w"), module_of("c.w d.w")
    torch.save({"generator": generator.state_dict(), "discriminator": critic.state_dict()}, "x.pt")
    assert fix_ckpt("x.pt", dry_run=True).taken == "generator"
    report = fix_ckpt("x.pt", "y.pt", model=critic, weights_only=True)
    assert report.taken == "discriminator"
    critic.load_state_dict(loaded("y.pt"))


def test_a_name_that_the_model_ties_is_added(folder: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 2), nn.Linear(2, 5, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    torch.save({"module.embed.weight": torch.ones(5, 2)}, "x.pt")
    report = fix_ckpt("x.pt", "y.pt", model=model)
    assert report.match is not None and report.match.complete
    assert report.notes == ("head.weight is added: the model ties it to embed.weight",)
    found = loaded("y.pt")
    assert list(found) == ["embed.weight", "head.weight"]
    assert found["embed.weight"].data_ptr() == found["head.weight"].data_ptr()
    model.load_state_dict(found)
    torch.save({"embed.weight": torch.ones(5, 2)}, "bare.pt")
    assert fix_ckpt("bare.pt", model=model).outputs


def test_a_module_that_renames_what_it_loads_is_believed(folder: Path) -> None:
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.bias = nn.Parameter(torch.ones(2))

        def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
            state[f"{prefix}bias"] = state.pop(f"{prefix}beta")
            super()._load_from_state_dict(state, prefix, *rest)

    save("module.weight module.beta")
    report = fix_ckpt("x.pt", "y.pt", model=Renamed())
    assert report.match is not None and report.match.complete
    Renamed().load_state_dict(loaded("y.pt"))


def test_optimizer_state_goes_by_numbers_or_follows_the_names(folder: Path) -> None:
    state = {"_fsdp_wrapped_module.a.w": torch.ones(2), "_fsdp_wrapped_module.b.w": torch.ones(2)}
    moments = {name: {"exp_avg": torch.zeros(2)} for name in state}
    by_name = {"state": moments, "param_groups": [{"lr": 0.1, "params": list(state)}]}
    by_number = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0, 1]}]}
    torch.save({"model": state, "optimizer": by_name, "optim_d": by_number}, "x.pt")
    fix_ckpt("x.pt", "y.pt")
    found = loaded("y.pt")
    assert list(found["model"]) == ["a.w", "b.w"]
    assert list(found["optimizer"]["state"]) == ["a.w", "b.w"]
    assert found["optimizer"]["param_groups"] == [{"lr": 0.1, "params": ["a.w", "b.w"]}]
    assert list(found["optim_d"]["state"]) == [0]
    assert found["optim_d"]["param_groups"] == by_number["param_groups"]


def test_optimizer_state_follows_where_only_a_part_was_compiled(folder: Path) -> None:
    state = {"enc._orig_mod.w": torch.ones(2), "head.w": torch.ones(2)}
    moments = {name: {"exp_avg": torch.zeros(2)} for name in state}
    groups = [{"params": list(state)}]
    torch.save({"model": state, "optim": {"state": moments, "param_groups": groups}}, "x.pt")
    fix_ckpt("x.pt", "y.pt")
    found = loaded("y.pt")["optim"]
    assert list(found["state"]) == found["param_groups"][0]["params"] == ["enc.w", "head.w"]


def test_extra_state_goes_along_with_its_module(folder: Path) -> None:
    class Scaled(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"scale": 2}

        def set_extra_state(self, state: dict[str, int]) -> None:
            assert state == {"scale": 2}

    model = nn.Sequential(Scaled(2, 2), nn.Linear(2, 2))
    torch.save(nn.DataParallel(torch.compile(model)).state_dict(), "x.pt")  # type: ignore[arg-type]
    for given in (None, model):
        report = fix_ckpt("x.pt", "y.pt", model=given, force=True)
        assert [(r.old, r.count) for r in report.renamed] == [("module._orig_mod.", 5)]
        model.load_state_dict(loaded("y.pt"))
        assert list(loaded("y.pt")) == list(model.state_dict())


def test_weights_of_another_model_lose_their_wrappers_all_the_same(folder: Path) -> None:
    generator, critic = module_of("a.w b.w"), module_of("c.w d.w")
    wrapped = {
        "generator": nn.DataParallel(generator).state_dict(),
        "discriminator": nn.DataParallel(critic).state_dict(),
    }
    torch.save(wrapped, "x.pt")
    fix_ckpt("x.pt", "y.pt", model=critic)
    found = loaded("y.pt")
    generator.load_state_dict(found["generator"])
    critic.load_state_dict(found["discriminator"])


def test_a_lightning_checkpoint_is_told_how_to_get_at_the_model(folder: Path) -> None:
    state = {"model.a.w": torch.ones(2), "model.b.w": torch.ones(2), "loss.w": torch.ones(2)}
    torch.save({"pytorch-lightning_version": "2.4.0", "state_dict": state}, "x.ckpt")
    told = "2 names start with 'model.', which the LightningModule adds: --strip model removes it"
    assert fix_ckpt("x.ckpt").notes == (told,)
    assert fix_ckpt("x.ckpt", "y.ckpt", strip=["model"]).notes == ()
    assert fix_ckpt("x.ckpt", "z.ckpt", model={"a.w": (2,), "b.w": (2,)}).notes == ()


def test_extra_state_does_not_hide_the_weights(folder: Path) -> None:
    torch.save({"module.w": torch.ones(2), "module._extra_state": {"scale": 2}}, "x.pt")
    assert fix_ckpt("x.pt", "y.pt").taken == "the file itself"
    assert list(loaded("y.pt")) == ["w", "_extra_state"]
