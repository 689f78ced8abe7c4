import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ptools.errors import PtoolsError, UsageError
from ptools.target import checkpoint_path, resolve

Write = Callable[[str, str], Path]

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int = 8, depth=1, *, bias=True):
        super().__init__()
        print("building")
        self.layers = nn.Sequential(*[nn.Linear(width, width, bias=bias) for _ in range(depth)])

    @classmethod
    def small(cls):
        return cls(width=2)
"""


def refusal(spec: str, *arguments: str, build: bool = False) -> UsageError:
    with pytest.raises(UsageError) as caught:
        target = resolve(spec, arguments)
        if build:
            target.build()
    return caught.value


def size(spec: str, *arguments: str) -> int:
    model = resolve(spec, arguments).build()
    return sum(parameter.numel() for parameter in model.parameters())


# The grammar


def test_a_class_in_a_file(write: Write) -> None:
    write("model.py", NET)
    target = resolve("model.py:Net")
    assert (target.label, target.arguments) == ("Net", {})
    assert isinstance(target.build(), nn.Module)
    assert target.obj.__module__ == "model"
    assert sys.modules["model"].Net is target.obj
    assert target.namespace["nn"] is nn


@pytest.mark.parametrize("spec", ["model.py:Net", "model:Net", "./model.py:Net", "{}/model.py:Net"])
def test_where_is_a_path_or_a_module(write: Write, spec: str) -> None:
    path = write("model.py", NET)
    assert size(spec.format(path.parent)) == 8 * 8 + 8


def test_a_folder_name_may_hold_a_colon(write: Write) -> None:
    write("run:3/model.py", NET)
    assert size("run:3/model.py:Net(width=2)") == 6


def test_arguments_inline_and_by_flag(write: Write) -> None:
    write("model.py", NET)
    assert size("model.py:Net(2)") == 6
    assert size("model.py:Net(width=2, bias=False)") == 4
    assert size("model.py:Net(2)", "depth=3") == 18
    assert size("model.py:Net", "width=2", "bias=false") == 4
    assert resolve("model.py:Net(width=4)", ["width=2"]).arguments == {"width": 2}


def test_values_are_literals_or_else_text(write: Write) -> None:
    write("model.py", "def build(**kwargs):\n    return kwargs\n")
    given = ["a=1", "b=[1, 2]", "c=None", "d=adam", "e='1'", "f=1e-3", "g=", "h=a=b", "i=os.name"]
    assert resolve("model.py:build", given).build() == {
        "a": 1,
        "b": [1, 2],
        "c": None,
        "d": "adam",
        "e": "1",
        "f": 1e-3,
        "g": "",
        "h": "a=b",
        "i": "os.name",
    }


@pytest.mark.parametrize(
    "call", ["Net(__import__('os'))", "Net(width=n)", "Net(*[1])", "Net(**{})", "Net(1", "Net)", ""]
)
def test_nothing_is_evaluated(write: Write, call: str) -> None:
    write("model.py", NET)
    assert "cannot read" in refusal(f"model.py:{call}").message


@pytest.mark.parametrize("text", ["width", "=3", "a-b=3"])
def test_a_bad_argument(write: Write, text: str) -> None:
    write("model.py", NET)
    assert refusal("model.py:Net", text).hint == "write -a name=value"


def test_a_dotted_name(write: Write) -> None:
    write("model.py", NET)
    assert size("model.py:Net.small") == 6
    assert size("model.py:nn.Linear(3, 4)") == 16


def test_an_instance_is_given_as_it_is(write: Write) -> None:
    write("model.py", NET + "mine = Net(3)\n")
    target = resolve("model.py:mine")
    assert target.build() is target.obj
    assert target.label == "Net"
    assert "takes no arguments" in refusal("model.py:mine", "width=3", build=True).message


def test_a_name_that_is_not_there(write: Write) -> None:
    write("model.py", NET)
    error = refusal("model.py:Nett")
    assert error.message == "model.py has no 'Nett'; it defines Net"
    assert error.hint == "did you mean model.py:Net?"
    assert refusal("model.py:Net.smal").hint == "did you mean model.py:Net.small?"


@pytest.mark.parametrize("spec", ["", "a b", "no/such/thing", "3.py:", "C:"])
def test_what_is_no_target(folder: Path, spec: str) -> None:
    assert refusal(spec).exit_code == 2


def test_a_path_without_its_suffix(write: Write) -> None:
    write("nets/model.py", NET)
    assert refusal("nets/model").hint == "did you mean nets/model.py?"


def test_weights_are_not_a_model(write: Write) -> None:
    path = write("w.safetensors", "")
    assert checkpoint_path("w.safetensors") == Path("w.safetensors")
    assert checkpoint_path(str(path)) == path
    assert checkpoint_path("missing.pt") is None
    assert checkpoint_path("w.safetensors:x") is None
    assert "holds weights" in refusal("w.safetensors").message


# The signature


def test_an_unknown_argument_shows_the_signature(write: Write) -> None:
    write("model.py", NET)
    error = refusal("model.py:Net", "widht=3", build=True)
    assert error.message == "Net(width=8, depth=1, *, bias=True) has no argument 'widht'"
    assert error.hint == "did you mean -a width=...?"


def test_missing_arguments_come_with_a_command(write: Write) -> None:
    write("model.py", "class Net:\n    def __init__(self, classes: int, width, dim=3): ...\n")
    error = refusal("model.py:Net", "width=3", build=True)
    assert error.message == "Net(classes, width, dim=3) needs classes"
    assert error.hint == "try: model.py:Net -a classes=..."


def test_too_many_positional_arguments(write: Write) -> None:
    write("model.py", NET)
    assert "too many positional" in refusal("model.py:Net(1, 2, 3)", build=True).message
    assert "multiple values" in refusal("model.py:Net(1)", "width=2", build=True).message


def test_a_constructor_that_raises_names_the_users_line(write: Write) -> None:
    write("model.py", "class Net:\n    def __init__(self):\n        raise KeyError('no key')\n")
    with pytest.raises(PtoolsError) as caught:
        resolve("model.py:Net").build()
    assert caught.value.exit_code == 1
    assert caught.value.message == "building Net raised KeyError: 'no key' (model.py:3)"
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_constructor_that_exits(write: Write) -> None:
    write("model.py", "import sys\ndef build():\n    sys.exit(3)\n")
    with pytest.raises(PtoolsError, match=r"SystemExit: 3 \(model.py:3\)"):
        resolve("model.py:build").build()


# No name: which one


@pytest.mark.parametrize(
    ("source", "choice"),
    [
        ("model = nn.Sequential(); other = nn.Linear(1, 1)", "model"),
        ("net = nn.Linear(1, 1); other = nn.Linear(1, 1)", "net"),
        ("a = nn.Linear(1, 1)\ndef get_model(): ...", "a"),
        ("a = b = nn.Linear(1, 1)", "a"),
        ("loss = nn.CrossEntropyLoss()\ndef make_model(): ...", "make_model"),
        ("a = nn.Linear(1, 1); b = nn.Linear(1, 1)\ndef build_model(): ...", "build_model"),
        ("class A(nn.Module): ...\ndef create_model(): ...", "create_model"),
        ("class A(nn.Module): ...\nclass Config: ...", "A"),
        ("class A(nn.Module): ...\nclass B(nn.Module):\n  def f(self): return A()", "B"),
        ("class B(nn.Module):\n  def f(self): return A()\nclass A(nn.Module): ...", "B"),
        ("class Base(nn.Module): ...\nclass B(Base): ...", "B"),
        (
            "class A(nn.Module): ...\ndef layer(): return A()\n"
            "class B(nn.Module):\n  def f(self): return layer()",
            "B",
        ),
        ("class A(nn.Module): ...\nAlias = A", "A"),
        ("from torch.nn import Linear\nclass A(nn.Module): ...", "A"),
        ("from torchlike import get_model\nclass A(nn.Module): ...", "A"),
        ("class A(nn.Module):\n  def f(self): return A()\ndef main(): A()", "A"),
    ],
)
def test_the_choice(write: Write, source: str, choice: str) -> None:
    write("torchlike.py", "def get_model(): ...")
    write("model.py", f"from torch import nn\n{source}\n")
    assert resolve("model.py").spec == f"model.py:{choice}"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("a = nn.Linear(1, 1); b = nn.Linear(1, 1)\nclass A(nn.Module): ...", ["a", "b"]),
        ("def get_model(): ...\ndef make_model(): ...", ["get_model", "make_model"]),
        ("class A(nn.Module): ...\nclass B(nn.Module): ...", ["A", "B"]),
        ("class A(nn.Module):\n  x = 'B'\n  def f(self): B()\n"
         "class B(nn.Module):\n  def f(self): A()", ["A", "B"]),
    ],
)  # fmt: skip
def test_several_candidates_are_listed_with_their_commands(
    write: Write, source: str, names: list[str]
) -> None:
    write("model.py", f"from torch import nn\n{source}\n")
    error = refusal("model.py")
    assert error.message == "model.py holds several models"
    assert str(error.hint).split("\n")[1:] == [f"  model.py:{name}" for name in names]


def test_a_file_without_models_lists_what_it_defines(write: Write) -> None:
    write("model.py", "import json\nfrom pathlib import Path\ndef train(): ...\nclass Config: ...")
    error = refusal("model.py")
    assert "defines no nn.Module" in error.message
    assert str(error.hint).split("\n")[1:] == ["  model.py:train", "  model.py:Config"]


# Loading files and modules


def test_a_file_in_a_package_can_import_its_relatives(write: Write) -> None:
    write("src/lab/__init__.py", "")
    write("src/lab/nets/__init__.py", "from .layers import Layer")
    write("src/lab/nets/layers.py", "class Layer: ...")
    write("src/lab/nets/model.py", "from . import Layer\nfrom ..nets.layers import Layer as L")
    target = resolve("src/lab/nets/model.py:Layer")
    assert target.obj.__module__ == "lab.nets.layers"
    assert "lab.nets.model" in sys.modules
    assert resolve("src/lab/nets/__init__.py:Layer").obj is target.obj


def test_a_file_sees_its_neighbours_first_and_then_the_current_folder(write: Write) -> None:
    write("nets/model.py", "import side, root\nname = side.name + root.name")
    write("nets/side.py", "name = 'nets/side '")
    write("side.py", "name = 'side '")
    write("root.py", "name = 'root'")
    assert resolve("nets/model.py:name").obj == "nets/side root"


def test_two_files_of_one_name(write: Write) -> None:
    write("a/model.py", "where = 'a'")
    write("b/model.py", "where = 'b'")
    assert [resolve(f"{name}/model.py:where").obj for name in "aba"] == ["a", "b", "a"]
    assert sys.modules["model"].where == "a"


@pytest.mark.parametrize("stem", ["json", "cProfile"])
def test_a_file_named_like_the_standard_library(write: Write, stem: str) -> None:
    write(f"{stem}.py", NET)
    assert size(f"{stem}.py:Net(2)") == 6
    assert not hasattr(__import__(stem), "Net")


def test_a_package_named_like_the_standard_library(write: Write) -> None:
    write("json/__init__.py", "")
    write("json/model.py", NET)
    assert size("json/model.py:Net(2)") == 6


def test_what_a_file_prints_goes_to_stderr(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("model.py", "print('importing')\n" + NET)
    resolve("model.py:Net").build()
    assert capsys.readouterr() == ("", "importing\nbuilding\n")


def test_a_file_sees_only_itself_on_the_command_line(write: Write) -> None:
    path = write("model.py", "import sys\nargv = sys.argv")
    before = list(sys.argv)
    assert resolve("model.py:argv").obj == [str(path)]
    assert sys.argv == before


def test_the_main_block_does_not_run(write: Write) -> None:
    write("model.py", "ran = False\nif __name__ == '__main__':\n    ran = True")
    assert resolve("model.py:ran").obj is False


def test_a_spawned_worker_can_import_the_class(write: Write) -> None:
    write("nets/model.py", "class Data:\n    def __len__(self): return 7\n")
    data = resolve("nets/model.py:Data").build()
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(len, (data,)) == 7


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nraise ValueError('no\\nmore')", "importing m.py raised ValueError: no (m.py:2)"),
        (
            "import helper",
            "importing m.py raised ZeroDivisionError: division by zero (helper.py:2)",
        ),
        ("import sys\nsys.exit('bye')", "m.py exits when it is imported, at m.py:2"),
        ("exit()", "m.py exits when it is imported, at m.py:1"),
        ("import absent.thing", "m.py:1 needs 'absent', which is not installed"),
        ("def f(:\n  pass", "m.py:1: invalid syntax"),
        ("raise SystemError", "importing m.py raised SystemError (m.py:1)"),
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('x')\n\np.parse_args()",
            "m.py reads the command line when it is imported, at m.py:5",
        ),
        (
            "import torch\n\ntorch.empty(2).view(3)",
            "importing m.py raised RuntimeError: "
            "shape '[3]' is invalid for input of size 2 (m.py:3)",
        ),
    ],
)
def test_a_file_that_cannot_be_imported(write: Write, source: str, message: str) -> None:
    write("helper.py", "\n1 / 0")
    write("m.py", source)
    error = refusal("m.py")
    assert error.message == message
    assert error.hint
    assert "m" not in sys.modules


def test_the_hints_of_failed_imports(write: Write) -> None:
    write("exits.py", "exit()")
    write("needs.py", "import absent.thing")
    write("relative.py", "from . import thing")
    write("module.py", "import exits")
    assert '__name__ == "__main__"' in str(refusal("exits.py").hint)
    assert "pip install absent," in str(refusal("needs.py").hint)
    assert "package.module:Net" in str(refusal("relative.py").hint)
    assert refusal("module").message == "module exits when it is imported, at exits.py:1"


def test_ctrl_c_passes_through(write: Write) -> None:
    write("model.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        resolve("model.py")
    assert "model" not in sys.modules


def test_a_file_that_is_not_there(write: Write) -> None:
    write("nets/model.py", NET)
    error = refusal("nets/modle.py:Net")
    assert error.message == "there is no file nets/modle.py"
    assert error.hint == "there is nets/model.py"
    assert refusal("absent/model.py").message.endswith("nor a folder absent")


def test_a_module_that_is_not_there(folder: Path) -> None:
    error = refusal("resnet50")
    assert error.message == "there is no module 'resnet50'"
    assert "timm:resnet50" in str(error.hint)
    assert refusal("absent.module:Net").message == "there is no module 'absent.module'"


def test_a_folder_without_a_config_lists_its_files(write: Write) -> None:
    write("nets/model.py", NET)
    assert refusal("nets").hint == "name a file in it: nets/model.py"


# Libraries


@pytest.fixture(scope="module")
def timm(torchvision: Any) -> Any:
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def transformers(torchvision: Any) -> Any:
    return pytest.importorskip("transformers")


def test_torchvision(torchvision: Any) -> None:
    target = resolve("torchvision:resnet18(num_classes=10)")
    assert (target.label, target.namespace) == ("resnet18", {})
    assert target.build().fc.out_features == 10
    assert "resnet18" in str(refusal("torchvision:resnet1").hint)


@pytest.mark.parametrize("name", ["fcn_resnet50", "googlenet"])
def test_torchvision_downloads_no_backbone_and_warns_of_nothing(
    torchvision: Any, name: str, recwarn: pytest.WarningsRecorder
) -> None:
    with torch.device("meta"):
        resolve(f"torchvision:{name}").build()
    assert not [warning for warning in recwarn if warning.category is FutureWarning]


def test_timm(timm: Any) -> None:
    assert resolve("timm:resnet18.a1_in1k", ["num_classes=3"]).build().fc.out_features == 3
    error = refusal("timm:resnet5O")
    assert error.message == "timm has no model 'resnet5O'"
    assert "resnet50" in str(error.hint)


def test_library_models_take_no_weights_and_no_positional_arguments(timm: Any) -> None:
    assert "would download" in refusal("timm:resnet18", "pretrained=True", build=True).message
    assert resolve("timm:resnet18", ["pretrained=False"]).build()
    assert "by name" in refusal("timm:resnet18(3)").message
    assert refusal("timm:").hint == "write timm:resnet50"


def test_a_hugging_face_folder(write: Write, transformers: Any) -> None:
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=10,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    write("llama/config.json", json.dumps(config.to_dict()))
    target = resolve("llama")
    model = target.build()
    assert target.label == type(model).__name__ == "LlamaForCausalLM"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() is torch.float32
    assert len(resolve("llama", ["num_hidden_layers=1"]).build().model.layers) == 1
    assert refusal("llama", "num_layer=1").hint == "did you mean num_hidden_layers?"


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        ({"model_type": "unheard"}, "does this transformers know model_type 'unheard'?"),
        ({"hidden_size": 3}, "a Hugging Face config.json has an entry model_type"),
        ({"model_type": "bert", "architectures": ["MyBert"]}, "code that comes with a model"),
    ],
)
def test_a_config_that_transformers_cannot_use(
    write: Write, transformers: Any, config: dict[str, Any], hint: str
) -> None:
    write("there/config.json", json.dumps(config))
    assert hint in str(refusal("there").hint)


def test_a_hub_client_is_offline_only_meanwhile(write: Write, transformers: Any) -> None:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    write("bert/config.json", json.dumps({"model_type": "bert", "hidden_size": 12}))
    assert resolve("bert").label == "AutoModel"
    assert before == constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers"])
def test_a_library_that_is_not_installed(
    write: Write, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    write("bert/config.json", "{}")
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(library), *sys.meta_path])
    with pytest.raises(PtoolsError, match=f"{library} is not installed") as caught:
        resolve("bert" if library == "transformers" else f"{library}:resnet18")
    assert caught.value.hint == f"pip install {library}"


class Missing:
    """An importer that finds one library missing."""

    def __init__(self, library: str) -> None:
        self.library = library

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self.library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_torchvision_for_another_torch(write: Write) -> None:
    """In a process of its own, since the stub of the other tests would hide the failure."""
    write(
        "torchvision/__init__.py", "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    code = "from ptools.target import resolve; resolve('torchvision:resnet18')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "PtoolsError: torchvision cannot be imported: torchvision was built for" in done.stderr
