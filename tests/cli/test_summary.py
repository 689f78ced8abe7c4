"""`ptools summary` as its user meets it: what is printed where, and with which exit code."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ptools.cli import main

Write = Callable[[str, str], Path]
Capture = pytest.CaptureFixture[str]

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8, classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))
"""


@pytest.fixture
def run(write: Write, capsys: Capture) -> Callable[..., tuple[int, str, str]]:
    write("net.py", NET)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["summary", *arguments])
        return code, *capsys.readouterr()

    return call


def test_the_table_and_the_verdict(run):
    code, out, err = run("net.py", "--input", "3x10x10")
    assert (code, err) == (0, "")
    assert "  conv  Conv2d 3x3  1x8x8x8" in out
    assert out.splitlines()[-1] == "Net: 242 parameters, 13.84 KMACs forward"


def test_arguments_reach_the_constructor(run):
    _, out, _ = run("net.py:Net(classes=5)", "-a", "width=16", "--json")
    assert json.loads(out)["parameters"] == 16 * 27 + 16 + 16 * 5 + 5


def test_json_is_one_object_with_units_in_its_names(run):
    code, out, err = run("net.py", "-i", "3x10x10", "--train", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert (report["command"], report["schema"]) == ("summary", 1)
    assert report["macs"] == 64 * 8 * 27 + 16
    assert report["input_source"] == "given"
    assert report["rung"] == "meta"
    assert report["memory"]["peak_bytes"] > 0
    assert report["layers"][1]["outputs"] == [[1, 8, 8, 8]]


def test_a_model_that_prints_does_not_spoil_json(run, write):
    write("loud.py", "print('hello')\n" + NET.replace("return self", "print('hi'); return self"))
    _, out, err = run("loud.py", "--json")
    assert json.loads(out)["parameters"] == 242
    assert "hi" in err


@pytest.mark.parametrize("option", ["--csv", "--markdown"])
def test_tables_for_machines(run, option):
    code, out, err = run("net.py", option)
    assert (code, err) == (0, "")
    assert "Conv2d" in out
    assert run("net.py", option, "--json")[0] == 2


@pytest.mark.parametrize("by", ["type", "op", "line"])
def test_other_rows(run, by):
    code, out, _ = run("net.py", "--by", by)
    assert code == 0
    assert {"type": "Linear", "op": "convolution", "line": "net.py:12"}[by] in out


def test_two_targets_side_by_side(run):
    code, out, _ = run("net.py", "--diff", "net.py:Net(width=16)")
    assert code == 0
    assert "224.0 " not in out
    assert "224" in out and "448" in out
    report = json.loads(run("net.py", "--diff", "net.py:Net(width=16)", "--json")[1])
    assert [side["parameters"] for side in report["diff"]] == [242, 482]


def test_two_targets_that_import_a_module_of_one_name(run, write):
    for name, width in (("a", 3), ("b", 5)):
        write(f"{name}/layers.py", f"WIDTH = {width}")
        text = f"from torch import nn\nfrom layers import WIDTH\nmodel{name} = nn.Linear(1, WIDTH)"
        write(f"{name}/net_{name}.py", text)
    report = json.loads(run("a/net_a.py", "--diff", "b/net_b.py", "--json")[1])
    assert [side["parameters"] for side in report["diff"]] == [6, 10]


def test_an_instance_whose_forward_needs_data_is_built_again_for_real(run, write):
    write("branch.py", """
from torch import nn
class Branch(nn.Linear):
    def forward(self, x):
        return super().forward(x) if self.weight.abs().sum() > 0 else x
model = Branch(100, 100)
""")  # fmt: skip
    report = json.loads(run("branch.py", "--json")[1])
    assert (report["rung"], report["macs"]) == ("cpu", 10_000)
    assert report["attempts"][0]["file"].endswith("branch.py")


def test_the_graph(run, tmp_path):
    code, out, _ = run("net.py", "--tensorboard", "runs")
    assert code == 0
    assert "tensorboard --logdir runs" in out
    assert list((tmp_path / "runs").glob("*/*tfevents*"))


def test_advice(run, write):
    write("biased.py", "from torch import nn\n"
          "model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))")  # fmt: skip
    _, out, _ = run("biased.py", "--advise")
    assert "bias=False" in out


def test_example_inputs_beside_the_model(run, write):
    write("declared.py", NET + "\nexample_inputs = torch.empty(4, 3, 6, 6)\n")
    report = json.loads(run("declared.py", "--strict", "--json")[1])
    assert (report["inputs"], report["input_source"]) == ("4x3x6x6 float32", "declared")


class TestCheckpoints:
    def test_parameters_by_name(self, run, tmp_path):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "last.ckpt")
        code, out, _ = run("last.ckpt", "--depth", "5")
        assert code == 0
        assert "running_mean" in out and "float32 4x4" in out
        assert out.splitlines()[-1].startswith("last.ckpt: 37 parameters")

    def test_tensors_that_share_memory_count_once(self, run, tmp_path):
        weight = torch.zeros(10, 4)
        torch.save({"embed.weight": weight, "head.weight": weight}, tmp_path / "tied.pt")
        assert json.loads(run("tied.pt", "--json")[1])["parameters"] == 40

    def test_safetensors(self, run, tmp_path):
        safetensors = pytest.importorskip("safetensors.torch")
        tensors = {"a.weight": torch.zeros(3, 5), "a.scale": torch.zeros(2, dtype=torch.bfloat16)}
        safetensors.save_file(tensors, tmp_path / "model.safetensors")
        report = json.loads(run("model.safetensors", "--json")[1])
        assert (report["parameters"], report["bytes"]) == (17, 64)
        assert report["dtypes"] == {"float32": 15, "bfloat16": 2}

    def test_a_pickle_is_never_executed(self, run, tmp_path):
        class Bomb:
            def __reduce__(self):
                return Path.touch, (tmp_path / "exploded",)

        torch.save({"state": Bomb()}, tmp_path / "bomb.pt")
        code, out, err = run("bomb.pt")
        assert (code, out) == (1, "")
        assert "never" in err and "hint:" in err
        assert not (tmp_path / "exploded").exists()

    @pytest.mark.parametrize("name", ["junk.pt", "junk.safetensors", "junk.bin"])
    @pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100, b"PK\x03\x04 not a zip"])
    def test_not_a_checkpoint(self, run, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        code, out, err = run(name)
        assert (code, out) == (2, "")
        assert len(err.strip().splitlines()) == 1

    def test_what_needs_code_is_refused(self, run, tmp_path):
        torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pt")
        for options in (["--train"], ["--input", "3"], ["--tensorboard", "runs"]):
            code, out, err = run("a.pt", *options)
            assert (code, out) == (2, "")
            assert options[0] in err

    def test_nothing_in_it(self, run, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "empty.pt")
        assert run("empty.pt")[0] == 2


BAD = {
    "no such file": (["nett.py"], 2, "net.py"),
    "no such name": (["net.py:Nat"], 2, "did you mean net.py:Net"),
    "unknown argument": (["net.py:Net(widht=4)"], 2, "did you mean -a width"),
    "not a shape": (["net.py", "--input", "3*4"], 2, "--input 3x224x224"),
    "not a dtype": (["net.py", "--dtype", "float31"], 2, "bfloat16"),
    "not a size": (["net.py", "--fit", "lots"], 2, "24GB"),
    "no such optimizer": (["net.py", "--train", "--optimizer", "adamm"], 2, "did you mean"),
    "no such option": (["net.py", "--inputs", "3"], 2, "--input"),
    "a guess refused": (["net.py", "--strict"], 2, "--input"),
    "unmeasured": (["net.py", "--sort", "activations"], 2, "--train"),
    "wrong name of an input": (["net.py", "--input", "y=3x8x8"], 1, "the forward takes (x)"),
    "no csv of a diff": (["net.py", "--diff", "net.py", "--csv"], 2, "--json"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_a_hint(run, case):
    arguments, code, hint = BAD[case]
    got, _, err = run(*arguments)
    assert got == code
    first, second = err.strip().splitlines()
    assert first.startswith("error: ")
    assert second.startswith("hint: ")
    assert hint in err


MODELS = {
    "raises on import": ("raise ValueError('boom')", 2, "bad.py:1"),
    "exits on import": ("import sys\nsys.exit(0)", 2, "bad.py:2"),
    "trains on import": (
        "import torch\nm = torch.nn.Linear(2, 2)\nm(torch.ones(1, 2)).sum().backward()",
        2,
        "bad.py:3 trains",
    ),
    "is no model": ("def build_model(): return 3", 2, "int"),
    "holds nothing": ("x = 3", 2, "bad.py"),
    "has two candidates": (
        NET + "class Other(nn.Module):\n    pass\n",
        2,
        "bad.py:Other",
    ),
    "misses an argument": (NET.replace("width=8", "width"), 2, "-a width="),
    "raises when built": (
        NET.replace("super().__init__()", "super().__init__(); 1 / 0"),
        1,
        "bad.py:7",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_file_that_is_no_good_gets_one_sentence(run, write, case):
    text, code, place = MODELS[case]
    write("bad.py", text)
    got, out, err = run("bad.py")
    assert (got, out) == (code, "")
    assert place in err
    assert "Traceback" not in err
    assert err.startswith("error: ") and len(err.strip().splitlines()) <= 4


def test_a_failing_forward_shows_the_table_so_far(run, write):
    write("bad.py", NET.replace("nn.Linear(width", "nn.Linear(width + 1"))
    code, out, err = run("bad.py", "--input", "3x8x8")
    assert code == 1
    assert "1x8x6x6" in out
    assert "STOPPED HERE, got 1x8" in out
    assert "bad.py:12" in err
    assert "1x8 and 9x2" in err
    code, out, err = run("bad.py", "--input", "3x8x8", "--json")
    assert (code, out) == (1, "")
    assert "bad.py:12" in json.loads(err)["error"]["message"]


def test_a_forward_with_several_arguments_says_which(run, write):
    write("bad.py", NET.replace("def forward(self, x)", "def forward(self, x, mask)"))
    code, out, _ = run("bad.py")
    assert code == 0
    assert "--input x=SHAPE --input mask=SHAPE" in out
    assert run("bad.py", "--strict")[0] == 2


def test_an_ascii_terminal_survives(write):
    write("net.py", NET)
    done = subprocess.run(
        [sys.executable, "-m", "ptools", "summary", "net.py"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        check=True,
    )
    assert done.stdout.isascii()
    assert b"####" in done.stdout


def test_settings_in_pyproject(run, write):
    write("pyproject.toml", "[tool.ptools.summary]\ndepth = 0\ninput = ['3x10x10']\n")
    _, out, _ = run("net.py")
    assert "conv" not in out
    assert "3x10x10" in out
