"""Fused models as files of torch.export and ONNX, beside the model that was handed in."""

import importlib.util
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ptools.errors import PtoolsError, UsageError
from ptools.fusion import formats
from ptools.fusion.formats import save_onnx, save_pt2
from ptools.fusion.steps import Zero
from ptools.fusion.trials import Trial


class Residual(nn.Module):
    """An identity that is no module, an addition of nothing, and a norm called as a function."""

    def __init__(self):
        super().__init__()
        self.conv, self.gone = nn.Conv2d(4, 4, 3, padding=1), Zero()
        self.up = nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        y = F.relu(x + self.conv(x)) + self.gone(x)
        norm = self.norm
        y = F.batch_norm(self.up(y), norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return self.head(F.relu(y).mean((2, 3)))


class Pairs(nn.Module):
    """Knows its batch size."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(x.reshape(2, 8))


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, *, scale):
        self.calls += 1
        self.last = x
        print("called")
        return {"out": self.conv(x) * scale["by"][:, None, None, None]}


class DecidesByData(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


def images(batch=2, seed=0):
    return torch.randn(batch, 4, 6, 6, generator=torch.Generator().manual_seed(seed))


def trial(*args, **kwargs):
    return Trial(args, kwargs, "")


def operations(file):
    graph = torch.export.load(file).graph
    return Counter(str(node.target) for node in graph.nodes if node.op == "call_function")


def test_a_program_takes_any_batch(folder, trained):
    model = trained(Residual())
    note = save_pt2(model, trial(images(1)), "model.pt2")
    assert note == "model.pt2: batch is dynamic, loads with torch.export.load"
    program = torch.export.load("model.pt2").module()
    for x in (images(1), images(2), images(5)):
        torch.testing.assert_close(program(x), model(x), atol=1e-5, rtol=1e-5)


def test_what_modules_could_not_say_is_merged_in_the_graph(folder, trained):
    save_pt2(trained(Residual()), trial(images()), "model.pt2")
    assert operations("model.pt2") == {
        "aten.convolution.default": 2,
        "aten.relu.default": 2,
        "aten.mean.dim": 1,
        "aten.linear.default": 1,
    }
    kept = set(torch.export.load("model.pt2").state_dict)
    assert {"conv.weight", "up.weight", "norm.weight"}.isdisjoint(kept)


def test_a_region_that_changes_the_shape_stays_and_others_are_merged(folder, trained):
    class Tokens(Residual):
        def forward(self, x):
            y = (x + self.conv(x)).flatten(2)  # 36 tokens
            y = self.tokens(y).flatten(0, 1)
            norm = self.norm
            return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    model = Tokens()
    model.tokens = nn.Linear(36, 6)
    save_pt2(trained(model), trial(images()), "model.pt2")
    found = operations("model.pt2")
    assert found["aten.convolution.default"] == 1
    assert found["aten._native_batch_norm_legit_no_training.default"] == 1


def test_a_merge_that_is_wrong_is_not_written(folder, trained, monkeypatch):
    def spoil(graph):
        next(graph.parameters()).data.add_(1)
        return True

    monkeypatch.setattr(formats, "simplify", spoil)
    model = trained(Residual())
    save_pt2(model, trial(images()), "model.pt2")
    program = torch.export.load("model.pt2").module()
    torch.testing.assert_close(program(images()), model(images()), atol=1e-5, rtol=1e-5)


def test_a_model_that_knows_its_batch_keeps_its_shapes(folder):
    note = save_pt2(Pairs().eval(), trial(torch.randn(2, 8)), "model.pt2")
    assert note == "model.pt2: shapes are fixed, loads with torch.export.load"


def test_structures_and_keywords_stay_and_the_model_is_untouched(folder, capfd):
    model = Counts().eval()
    save_pt2(model, trial(images(), scale={"by": torch.rand(2)}), "model.pt2")
    assert model.calls == 0
    assert not hasattr(model, "last")
    assert capfd.readouterr() == ("", "")
    program = torch.export.load("model.pt2").module()
    x, by = images(3), torch.rand(3)
    torch.testing.assert_close(program(x, scale={"by": by}), model(x, scale={"by": by}))


def test_weights_of_16_bits_stay_so(folder, trained):
    save_pt2(trained(Residual()).bfloat16(), trial(images().bfloat16()), "model.pt2")
    weights = torch.export.load("model.pt2").state_dict.values()
    assert {weight.dtype for weight in weights} == {torch.bfloat16}


def test_what_changes_from_call_to_call_is_not_written_as_a_constant(folder):
    class Grows(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    with pytest.raises(PtoolsError, match="off by"):
        save_pt2(Grows(), trial(images()), "model.pt2")


def test_a_model_that_torch_can_not_export_is_an_error_and_no_file(folder, capfd):
    with pytest.raises(PtoolsError, match=r"can't write this model: GuardOnData.*py:\d+\)$"):
        save_pt2(DecidesByData(), trial(images()), "model.pt2")
    assert not list(folder.iterdir())
    assert capfd.readouterr() == ("", "")


def test_an_existing_file_is_replaced_only_when_forced(folder, write):
    write("model.pt2", "mine")
    with pytest.raises(UsageError, match="already exists"):
        save_pt2(Pairs(), trial(torch.randn(2, 8)), "model.pt2")
    assert (folder / "model.pt2").read_text() == "mine"
    save_pt2(Pairs(), trial(torch.randn(2, 8)), "model.pt2", force=True)
    torch.export.load("model.pt2")


def test_onnx_that_is_not_installed_is_said_with_what_to_type(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PtoolsError, match="--onnx needs onnx and onnxscript") as caught:
        save_onnx(Pairs(), trial(torch.randn(2, 8)), "model.onnx")
    assert caught.value.hint == "pip install 'ptools[onnx]'"


def test_onnx_takes_any_batch(folder, trained):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = trained(Residual())
    note = save_onnx(model, trial(images()), "model.onnx")
    assert note == "model.onnx: batch is dynamic, agrees in onnxruntime"
    assert [file.name for file in folder.iterdir()] == ["model.onnx"]
    session = runtime.InferenceSession("model.onnx")
    x = images(3, seed=1)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x), atol=1e-5, rtol=1e-5)


def test_onnx_without_its_runtime_is_said_to_be_unverified(folder, trained, monkeypatch):
    pytest.importorskip("onnxscript")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    note = save_onnx(trained(Residual()), trial(images()), "model.onnx")
    assert note.endswith("not verified: onnxruntime is not installed")


SAVES = """
import resource, torch
from ptools.fusion.formats import save_pt2
from ptools.fusion.trials import Trial
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
model, trial = torch.nn.Conv2d(4, 32, 3).eval(), Trial((torch.ones(1, 4, 6, 6),), {}, "")
try:
    save_pt2(model, trial, "model.pt2")
except OSError as error:
    print(error.strerror)
"""


def test_a_full_disk_is_an_error_and_leaves_nothing(folder):
    """torch's own writer ends the process where the system refuses to write."""
    done = subprocess.run([sys.executable, "-c", SAVES], capture_output=True, text=True)
    assert done.stdout == "File too large\n", done.stderr
    assert list(folder.iterdir()) == []
