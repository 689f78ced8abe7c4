"""`ptools fuse` as its user meets it; what it finds and proves is tested with the library."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import ptools
from ptools import fusion
from ptools.cli import main
from ptools.errors import PtoolsError
from ptools.fusion import FusionReport, formats
from ptools.fusion.report import Difference, Operations
from ptools.fusion.trials import Trial

Write = Callable[[str, str], Path]
Run = Callable[..., tuple[int, str, str]]

NET = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        print("building")
        self.conv = nn.Conv2d(3, width, 3)
        self.bn = nn.BatchNorm2d(width, momentum=0.5)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.bn(self.conv(x)).relu().mean((2, 3)))

example_inputs = (2, 3, 8, 8)
data = TensorDataset(torch.randn(6, 3, 8, 8))
"""
SAME = Difference(1e-7, 2e-7, 1.0)
OPERATIONS = Operations(1, 1, 1, 0, 5), Operations(1, 1, 0, 0, 4)


class Fused:
    """Stands for the work: what it was called with, and what it found."""

    def __init__(self) -> None:
        self.model: Any = None
        self.options: dict[str, Any] = {}
        self.difference = SAME

    def __call__(self, model: Any, inputs: Any = None, **options: Any) -> FusionReport:
        self.model, self.options = model, {"inputs": inputs, **options}
        print("what a forward prints")
        return FusionReport(
            name=type(model).__name__,
            model=nn.Linear(2, 2),
            example=Trial((torch.zeros(1, 2),), {}, ""),
            inputs="1x2 float32",
            input_source="declared",
            trials=("1x2 float32 (seed 0)",),
            provers=("observation", "torch.export"),
            export_problem=None,
            steps=(),
            norms=1,
            left=(),
            operations=OPERATIONS,
            parameters=(10, 8),
            macs=(100, 100),
            difference=self.difference,
            tolerance=1e-4,
            warnings=("1 of 1 batch norm was never trained",),
        )


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Fused:
    stand_in = Fused()
    monkeypatch.setattr(fusion, "fuse", stand_in)
    return stand_in


@pytest.fixture
def run(write: Write, capsys: pytest.CaptureFixture[str]) -> Run:
    write("net.py", NET)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["fuse", *arguments])
        return code, *capsys.readouterr()

    return call


def trained(width: int = 4) -> nn.Module:
    """A model of the same names as that of `NET`, with weights of its own."""
    torch.manual_seed(1)
    model = nn.Module()
    model.conv = nn.Conv2d(3, width, 3)
    model.bn = nn.BatchNorm2d(width)
    model.head = nn.Linear(width, 2)
    nn.init.uniform_(model.bn.running_var, 0.5, 1.5)
    model.bn.num_batches_tracked.fill_(9)
    return model


def test_a_model_with_its_weights_is_fused_written_and_loaded_again(run: Run, folder: Path) -> None:
    torch.save({"state_dict": trained().state_dict()}, "last.ckpt")
    code, out, err = run("net.py", "--ckpt", "last.ckpt", "-o", "fused.pt", "--no-latency")
    assert code == 0, err
    assert out.splitlines()[-1].endswith("spread, 1 of 1 batch norm folded")
    assert "ptools.load_fused(model, 'fused.pt')" in out
    assert "building" in err

    from net import Net  # type: ignore[import-not-found]

    expected = Net()
    expected.load_state_dict(trained().state_dict())
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        got = ptools.load_fused(Net(), "fused.pt")(x)
        assert torch.allclose(got, expected.eval()(x), atol=1e-6)
    assert isinstance(ptools.load_fused(Net(), "fused.pt").bn, nn.Identity)


def test_a_model_without_batch_norms_is_no_failure(run: Run, write: Write) -> None:
    write("plain.py", "from torch import nn\nmodel = nn.Sequential(nn.Linear(3, 2), nn.ReLU())")
    code, out, _ = run("plain.py", "--no-latency")
    assert code == 0
    assert out.splitlines()[-1] == "nothing to fold: the model has no batch norms"


def test_the_page_is_on_stdout_and_the_rest_on_stderr(run: Run, fused: Fused) -> None:
    code, out, err = run("net.py")
    assert code == 0
    assert out.splitlines()[0] == "model   Net with 1x2 float32, declared"
    assert "warning: 1 of 1 batch norm was never trained" in err
    assert "building" in err and "what a forward prints" in err


def test_json_is_one_object(run: Run, fused: Fused) -> None:
    code, out, _ = run("net.py", "--json", "-o", "fused.pt")
    report = json.loads(out)
    assert (code, report["command"], report["schema"]) == (0, "fuse", 1)
    assert (report["folded"], report["equal"]) == (1, True)
    assert report["written"] == ["fused.pt"]


def test_the_model_is_handed_over_in_eval_mode_with_what_lies_beside_it(
    run: Run, fused: Fused
) -> None:
    assert run("net.py:Net", "-a", "width=6")[0] == 0
    assert not fused.model.training and fused.model.conv.out_channels == 6
    assert fused.options["namespace"]["example_inputs"] == (2, 3, 8, 8)
    assert fused.options["inputs"] is None
    assert fused.options["latency"] is True


def test_options_reach_the_library(run: Run, fused: Fused) -> None:
    flags = ["--channels-last", "--inplace-relu", "--int8", "--assume-traced", "--strict"]
    values = ["--dtype", "bf16", "--tolerance", "0.01", "--input", "3x9x9", "--no-latency"]
    assert run("net.py", *flags, *values, "--data", "net.py")[0] == 0
    options = fused.options
    assert all(options[flag.strip("-").replace("-", "_")] is True for flag in flags)
    assert options["dtype"] is torch.bfloat16
    assert options["tolerance"] == 0.01 and options["latency"] is False
    assert options["inputs"].specs()[0].shape == (3, 9, 9)
    assert len(options["data"]) == 6


def test_data_may_be_a_loader(run: Run, fused: Fused, write: Write) -> None:
    write("loading.py", "from torch.utils.data import DataLoader\nloader = DataLoader([1, 2])")
    assert run("net.py", "--data", "loading.py")[0] == 0
    assert isinstance(fused.options["data"], DataLoader)


def test_a_model_that_is_not_equal_is_exit_code_3_and_not_written(
    run: Run, fused: Fused, folder: Path
) -> None:
    fused.difference = replace(SAME, relative=0.5)
    code, out, err = run("net.py", "-o", "fused.pt")
    assert code == 3
    assert out.splitlines()[-1].startswith("NOT EQUAL: ")
    assert "fused.pt was not written" in err
    assert not (folder / "fused.pt").exists()


def test_an_error_that_is_no_number_is_not_equal(run: Run, fused: Fused) -> None:
    fused.difference = replace(SAME, relative=float("nan"))
    code, out, _ = run("net.py", "--json")
    assert code == 3
    assert json.loads(out)["difference"]["relative"] is None


def test_formats_of_others_are_written_and_their_notes_shown(
    run: Run, fused: Fused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(model: nn.Module, trial: Trial, path: Path, force: bool) -> str:
        print("what a forward prints when it is exported")
        return f"{path}: batch is dynamic"

    monkeypatch.setattr(formats, "save_pt2", save)
    monkeypatch.setattr(formats, "save_onnx", save)
    monkeypatch.setattr(formats, "check_onnx", lambda: None)
    code, out, err = run("net.py", "--pt2", "a.pt2", "--onnx", "a.onnx")
    assert code == 0
    assert "when it is exported" in err
    assert "a.pt2: batch is dynamic" in out and "a.onnx: batch is dynamic" in out
    assert "model = torch.export.load('a.pt2').module()" in out


def test_a_file_that_cannot_be_written_does_not_cost_the_page(
    run: Run, fused: Fused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> str:
        raise PtoolsError("the disk is full")

    monkeypatch.setattr(formats, "save_pt2", full)
    code, out, err = run("net.py", "-o", "fused.pt", "--pt2", "a.pt2")
    assert code == 1
    assert "load_fused(model, 'fused.pt')" in out
    assert out.splitlines()[-1].startswith("nothing was folded: ")
    assert "error: the disk is full" in err


BAD = {
    "no such file": (["nett.py"], "net.py"),
    "no model": (["net.py:data"], "net.py:data is no model but of type TensorDataset"),
    "unknown argument": (["net.py:Net(widht=4)"], "did you mean -a width"),
    "not a shape": (["net.py", "--input", "3*4"], "--input 3x224x224"),
    "no such dtype": (["net.py", "--dtype", "fp8"], "bf16"),
    "no tolerance": (["net.py", "--tolerance", "0"], "not above 0"),
    "a tolerance that is none": (["net.py", "--tolerance", "nan"], "not above 0"),
    "a folder that is not there": (["net.py", "-o", "a/b.pt"], "mkdir -p"),
    "a file that is there": (["net.py", "-o", "w.pt"], "--force"),
    "a program there": (["net.py", "--pt2", "w.pt"], "--force"),
    "another option's file": (["net.py", "-o", "a.pt2"], "--pt2 a.pt2"),
    "a file without a recipe": (["net.py", "-o", "a.safetensors"], "did you mean a.pt?"),
    "two of one name": (["net.py", "--pt2", "a.pt", "-o", "a.pt"], "different files"),
    "over the weights": (["net.py", "--ckpt", "w.pt", "-o", "w.pt", "-f"], "different files"),
    "over the model": (["net.py:Net", "-o", "net.py", "-f"], "different files"),
    "no data": (["net.py", "--data", "nett.py"], "net.py"),
    "no weights": (["net.py", "--ckpt", "nowhere.pt"], "there is no file nowhere.pt"),
    "a folder of weights": (["net.py", "--ckpt", "."], "ptools fix-ckpt . -o weights.pt"),
    "weights as target": (["w.pt"], "holds weights, not a model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_before_any_work(run: Run, fused: Fused, case: str) -> None:
    arguments, told = BAD[case]
    torch.save(trained().state_dict(), "w.pt")
    code, out, err = run(*arguments)
    assert (code, out, fused.model) == (2, "", None)
    assert told in err and "Traceback" not in err


def without(*names: str) -> dict[str, Any]:
    state = trained().state_dict()
    return {name: value for name, value in state.items() if name not in names}


CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "names missing": (
        without("conv.weight", "head.bias"),
        "2 names are missing (the first is conv.weight)",
    ),
    "a name too many": (
        {**without(), "module.x": torch.zeros(1)},
        "1 name is unexpected (module.x)",
    ),
    "both": (
        {f"module.{name}": value for name, value in without().items()},
        "names are missing (the first is conv.weight), 9 names are unexpected (the first is",
    ),
    "another width": (trained(5).state_dict(), "size mismatch for conv.weight"),
    "a list": ([1, 2], "holds a list, not a state_dict"),
    "texts": ({"state_dict": {"conv.weight": "text"}}, "conv.weight"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_weights_that_do_not_fit_say_how_to_make_them_fit(
    run: Run, fused: Fused, case: str
) -> None:
    content, told = CHECKPOINTS[case]
    torch.save(content, "w.pt")
    code, out, err = run("net.py:Net(width=4)", "--ckpt", "w.pt")
    assert (code, out, fused.model) == (2, "", None)
    assert told in err
    assert "ptools fix-ckpt w.pt --model 'net.py:Net(width=4)'" in err


@pytest.mark.parametrize("case", ["names missing", "another width"])
def test_weights_that_no_renaming_makes_fit_are_not_promised_to(
    run: Run, fused: Fused, case: str
) -> None:
    torch.save(CHECKPOINTS[case][0], "w.pt")
    _, _, err = run("net.py", "--ckpt", "w.pt")
    assert "make them fit" not in err
    assert "--dry-run" in err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_told_from_a_damaged_file(run: Run, fused: Fused) -> None:
    torch.jit.script(trained()).save("ts.pt")
    code, _, err = run("net.py", "--ckpt", "ts.pt")
    assert code == 2
    assert "ts.pt is TorchScript" in err and "UserWarning" not in err
    assert "ptools fix-ckpt ts.pt -o weights.pt" in err
    Path("cut.pt").write_bytes(Path("ts.pt").read_bytes()[:500])
    assert "ptools fix-ckpt info cut.pt" in run("net.py", "--ckpt", "cut.pt")[2]


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_weights_are_found_in_what_a_training_saves(
    run: Run, fused: Fused, wrapper: str | None
) -> None:
    state = trained().state_dict()
    torch.save({"epoch": 3, wrapper: state} if wrapper else state, "w.pt")
    assert run("net.py", "--ckpt", "w.pt")[0] == 0
    assert torch.equal(fused.model.conv.weight, state["conv.weight"])


def test_weights_may_be_safetensors(run: Run, fused: Fused) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = trained().state_dict()
    safetensors.save_file(state, "w.safetensors")
    assert run("net.py", "--ckpt", "w.safetensors")[0] == 0
    assert torch.equal(fused.model.head.weight, state["head.weight"])
    Path("bad.safetensors").write_bytes(b"\xff" * 20)
    assert run("net.py", "--ckpt", "bad.safetensors")[0] == 2


def test_weights_are_never_unpickled(run: Run, fused: Fused, folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (folder / "exploded",)

    torch.save({"state_dict": Bomb()}, "bomb.pt")
    code, _, err = run("net.py", "--ckpt", "bomb.pt")
    assert code == 1
    assert "never does" in err and "ptools fix-ckpt bomb.pt" in err
    assert not (folder / "exploded").exists()


def test_weights_that_are_fused_already_are_told_their_way(run: Run, fused: Fused) -> None:
    assert run("net.py", "-o", "fused.pt")[0] == 0
    code, _, err = run("net.py", "--ckpt", "fused.pt")
    assert code == 2
    assert "ptools.load_fused(model, 'fused.pt')" in err


def test_settings_in_pyproject(run: Run, fused: Fused, write: Write) -> None:
    write("pyproject.toml", "[tool.ptools.fuse]\nno-latency = true\ntolerance = 0.5\n")
    assert run("net.py")[0] == 0
    assert fused.options["latency"] is False and fused.options["tolerance"] == 0.5
