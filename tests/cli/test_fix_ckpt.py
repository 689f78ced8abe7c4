import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from ptools.cli import main

Write = Callable[[str, str], Path]
Capture = pytest.CaptureFixture[str]

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Linear(3, width)
        self.head = nn.Linear(width, 2)
"""


@pytest.fixture
def saved(write: Write) -> Path:
    """A checkpoint of DataParallel from a GPU, and its model."""
    write("net.py", NET)
    model = nn.Module()
    model.body, model.head = nn.Linear(3, 4), nn.Linear(4, 2)
    with mock.patch.object(torch.serialization, "location_tag", lambda _: "cuda:1"):
        torch.save({"model": nn.DataParallel(model).state_dict(), "epoch": 3}, "last.pt")
    return Path("last.pt")


def run(*words: str) -> int:
    return main(["fix-ckpt", *words])


def test_the_page_tells_what_was_done_and_how_to_load_it(saved: Path, capsys: Capture) -> None:
    assert run("last.pt") == 0
    out, err = capsys.readouterr()
    assert err == ""
    sizes = re.sub(r"\d[\d.]* (KiB|B)", "SIZE", out)
    assert sizes == (
        "checkpoint  last.pt, torch zip, SIZE\n"
        "weights     model: 4 tensors\n"
        "names       module. removed from 4\n"
        "location    cuda:1 -> cpu: 4 storages\n"
        "checksums   4 records of the source verified (SIZE)\n"
        "            SIZE read back and compared\n"
        "load it     model.load_state_dict(torch.load('last.cpu.pt', weights_only=True)['model'])\n"
        "\n"
        "last.cpu.pt: SIZE, loads with weights_only=True\n"
    )
    assert set(torch.load("last.cpu.pt", weights_only=True)) == {"model", "epoch"}


def test_one_of_a_thing_is_not_many(folder: Path, capsys: Capture) -> None:
    with mock.patch.object(torch.serialization, "location_tag", lambda _: "cuda:1"):
        torch.save({"module.w": torch.ones(2)}, "x.pt")
    assert run("x.pt", "--dtype", "bf16") == 0
    out = capsys.readouterr().out
    for text in ("itself: 1 tensor\n", "cpu: 1 storage\n", "bfloat16: 1 storage\n", " 1 record of"):
        assert text in out


def test_json_is_one_object_on_stdout(saved: Path, capsys: Capture) -> None:
    assert run("last.pt", "--model", "net.py", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert (found["command"], found["schema"]) == ("fix-ckpt", 1)
    assert found["outputs"] == ["last.cpu.pt"]
    assert found["renamed"] == [{"old": "module.", "new": "", "count": 4}]
    assert found["locations"] == [{"from": "cuda:1", "to": "cpu", "count": 4}]
    assert found["match"]["complete"] is True
    assert found["output_bytes"] == Path("last.cpu.pt").stat().st_size


def test_nothing_to_fix_is_said(saved: Path, capsys: Capture) -> None:
    run("last.pt", "-o", "good.pt")
    capsys.readouterr()
    assert run("good.pt") == 0
    assert capsys.readouterr().out.endswith("\n\ngood.pt: nothing to fix\n")
    assert not Path("good.cpu.pt").exists()


def test_a_dry_run_writes_nothing(saved: Path, folder: Path, capsys: Capture) -> None:
    assert run("last.pt", "--dry-run") == 0
    assert "nothing was written (--dry-run); the result loads" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "net.py"]


def test_a_model_that_fits_is_proven_to(saved: Path, capsys: Capture) -> None:
    assert run("last.pt", "--model", "net.py:Net") == 0
    out = capsys.readouterr().out
    assert "model       4 of its 4 tensors are there (module. removed)\n" in out
    assert out.endswith(", loads strictly into the model\n")
    assert run("last.cpu.pt", "--model", "net.py", "-o", "b.pt") == 0
    assert "4 of its 4 tensors are there (under the same names)\n" in capsys.readouterr().out


def test_a_model_that_fits_partly_is_code_3(saved: Path, capsys: Capture) -> None:
    assert run("last.pt", "--model", "net.py:Net", "-a", "width=5") == 3
    out = capsys.readouterr().out
    assert "            differs body.weight: 4x3 here, 5x3 in the model\n" in out
    assert out.endswith("does not load into the model: 3 tensors missing or of another shape\n")
    assert Path("last.cpu.pt").exists()


def test_a_model_that_does_not_fit_is_code_1(saved: Path, write: Write, capsys: Capture) -> None:
    write(
        "other.py", "from torch import nn\nmodel = nn.ParameterList([nn.Embedding(1, 1).weight])\n"
    )
    assert run("last.pt", "--model", "other.py") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: nothing in it fits the model: that has '0', but '")
    write("wide.py", "from torch import nn\nmodel = nn.Conv2d(1, 7, 1)\n")
    assert run("last.pt", "--model", "wide.py") == 1
    assert re.search(r"weight is \dx\d here, 7x1x1x1 in the model\n", capsys.readouterr().err)
    assert not Path("last.cpu.pt").exists()


def test_nothing_to_fix_does_not_hide_that_the_model_differs(saved: Path, capsys: Capture) -> None:
    run("last.pt", "-o", "good.pt")
    assert run("good.pt", "--model", "net.py") == 0
    out = capsys.readouterr().out
    assert out.endswith("good.pt: nothing to fix, loads strictly into the model\n")
    assert run("good.pt", "--model", "net.py", "-a", "width=5") == 3
    out = capsys.readouterr().out
    assert "good.pt: nothing to fix, does not load into the model: 3 tensors missing" in out


def test_names_near_to_each_other_are_shown(write: Write, capsys: Capture) -> None:
    write("net.py", NET)
    state = {"body.weight": torch.ones(4, 3), "body.biass": torch.ones(4)}
    torch.save(state, "x.pt")
    assert run("x.pt", "--model", "net.py") == 3
    out = capsys.readouterr().out
    assert "            missing body.bias  (near: body.biass)\n" in out
    assert "            unexpected body.biass  (near: body.bias)\n" in out


def test_a_loaded_model_leaves_no_torch_dtype_or_device_behind(saved: Path) -> None:
    before = torch.get_default_dtype(), torch.get_default_device()
    run("last.pt", "--model", "net.py")
    assert (torch.get_default_dtype(), torch.get_default_device()) == before


def test_safetensors_are_not_said_to_load_with_torch(saved: Path, capsys: Capture) -> None:
    assert run("last.pt", "--safetensors") == 0
    out = capsys.readouterr().out
    assert "left out    epoch\n" in out
    assert out.endswith("B, loads with safetensors\n")


def test_checksums_that_there_are_none_of_are_told(folder: Path, capsys: Capture) -> None:
    state = {"module.w": torch.ones(2)}
    torch.save(state, "old.pt", _use_new_zipfile_serialization=False)
    run("old.pt")
    assert "none to verify: the source (legacy torch) has none\n" in capsys.readouterr().out
    torch.save(state, "new.pt")
    run("new.pt", "--inplace")
    assert "not verified: the weights were not touched\n" in capsys.readouterr().out


def test_the_only_checkpoint_here_needs_no_name(saved: Path, capsys: Capture) -> None:
    assert run() == 0
    assert "last.cpu.pt: " in capsys.readouterr().out


def test_without_a_name_one_of_several_must_be_chosen(folder: Path, capsys: Capture) -> None:
    assert run() == 2
    assert capsys.readouterr().err == "error: there is no checkpoint here\nhint: give its path\n"
    for name in ("a.pt", "b.ckpt"):
        torch.save({"w": torch.ones(1)}, name)
    assert run() == 2
    assert capsys.readouterr().err == (
        "error: there are 2 checkpoints here\n"
        "hint: name one:\n  ptools fix-ckpt a.pt\n  ptools fix-ckpt b.ckpt\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        ("lost.pt", 2, "lost.pt does not exist", "did you mean last.pt?"),
        ("net.py", 2, "net.py is a Python source file", "give the checkpoint"),
        ("empty.pt", 2, "empty.pt is empty", "download or copy it again"),
        ("page.pt", 2, "page.pt is a web page", "open it in a browser"),
        ("lfs.pt", 2, "lfs.pt is a Git LFS pointer", "git lfs pull"),
        ("cut.pt", 1, "cut.pt is cut short", "download or copy it again"),
        ("damaged.pt", 1, "the checksum is wrong of body.weight", "nothing was written"),
        ("last.pt -o last.pt", 2, "last.pt is the checkpoint itself", "pass --inplace"),
        ("last.pt --to gpu", 2, "'gpu' is no place for tensors", "use cpu, cuda:0 or meta"),
        ("last.pt --dtype int8", 2, "'int8' is no dtype", "use float32"),
        ("last.pt --shard-size big", 2, "'big' is not a size", "24GB"),
        ("last.pt --drop optimizer epoch", 2, "one checkpoint at a time", "--drop A --drop B"),
        ("last.pt --ema", 2, "there are no EMA weights", "there is model"),
        ("last.pt --model net.py:Nt", 2, "net.py has no 'Nt'", "net.py:Net"),
        ("last.pt --model lost.py", 2, "there is no file lost.py", "net.py"),
    ],
)
def test_bad_input_is_told_in_a_sentence_with_a_hint(
    saved: Path, folder: Path, capsys: Capture, words: str, code: int, message: str, hint: str
) -> None:
    data = saved.read_bytes()
    Path("empty.pt").touch()
    Path("page.pt").write_text("<!DOCTYPE html><html>")
    Path("lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    Path("cut.pt").write_bytes(data[: len(data) // 2])
    weight = torch.load(saved, map_location="cpu")["model"]["module.body.weight"]
    at = data.index(bytes(weight.view(-1).view(torch.uint8).numpy()))
    Path("damaged.pt").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    before = sorted(path.name for path in folder.iterdir())
    assert run(*words.split()) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and message in err
    assert hint in err.partition("\nhint: ")[2]
    assert "Traceback" not in err
    left = {path.name for path in folder.iterdir()} - {"__pycache__"}  # of net.py
    assert sorted(left) == before


@pytest.mark.parametrize(
    "options",
    ["", "--weights-only", "--safetensors", "--inplace", "--json", "--to meta", "--compact"],
)
def test_a_plain_fix_imports_nothing_heavy(saved: Path, options: str) -> None:
    code = (
        "import sys; from ptools.cli import main; "
        f"assert main({['fix-ckpt', 'last.pt', *options.split()]}) == 0; "
        "print({'torch', 'numpy', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "set()\n"


def test_what_runs_code_is_called_so_and_does_not_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, ("touch ran",)

    torch.save({"w": torch.ones(1), "\x1b[2Jx": Bad()}, "x.pt")
    assert main(["fix-ckpt", "x.pt"]) == 0
    page = capsys.readouterr().out
    assert "posix.system, which RUNS CODE" in page
    assert "\x1b" not in page
    assert not (folder / "ran").exists()
    assert list(torch.load("x.cpu.pt", weights_only=True)) == ["w"]
