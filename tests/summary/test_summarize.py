"""Parameters, layers, inputs and rungs of `summarize`."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import ptools
from ptools.errors import PtoolsError, UsageError
from ptools.summary import ForwardError, summarize


def layers(summary):
    return {layer.path: layer for layer in summary.layers}


class Box:
    """Something that no container protocol opens."""

    def __init__(self, tensor):
        self.tensor = tensor


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 16)
        self.body = nn.Linear(16, 16)
        self.head = nn.Linear(16, 100, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(3))
        self.spare = nn.Linear(2, 2)

    def forward(self, ids):
        return self.head(self.body(self.embed(ids)))


def test_tied_weights_count_once_and_say_so():
    model = Tied()
    summary = summarize(model, torch.zeros(1, 5, dtype=torch.long))
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.buffers == 3
    assert layers(summary)["head"].tied == ("weight = embed.weight",)
    assert layers(summary)["head"].parameters == 0
    assert layers(summary)["head"].macs == 5 * 16 * 100
    assert (layers(summary)["spare"].calls, layers(summary)["body"].calls) == (0, 1)


def test_trainable_and_dtypes():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).half())
    model[0].requires_grad_(False)
    summary = summarize(model)
    assert (summary.parameters, summary.trainable) == (40, 20)
    assert summary.dtypes == {"float32": 20, "float16": 20}
    assert summary.bytes == 20 * 4 + 20 * 2


def test_a_shared_module_has_a_row_for_each_path_with_its_own_calls():
    shared = nn.Linear(4, 4)
    left, right = nn.Sequential(shared), nn.Sequential(shared, nn.ReLU(), shared)
    model = nn.Sequential(left, right)
    summary = summarize(model, torch.empty(1, 4))
    rows = layers(summary)
    assert summary.parameters == 20
    assert {p: rows[p].calls for p in ("0.0", "1.0", "1.2")} == {"0.0": 1, "1.0": 2, "1.2": 0}
    assert rows["1.0"].same_as == "0.0"
    assert (rows["0"].macs, rows["1"].macs) == (16, 32)


def test_own_operations_of_a_container_are_its_own():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.weight = nn.Parameter(torch.empty(4, 2))

        def forward(self, x):
            return self.inner(x) @ self.weight

    root = layers(summarize(Net(), torch.empty(3, 4)))[""]
    assert (root.own_macs, root.macs) == (3 * 4 * 2, 3 * 4 * 2 + 3 * 4 * 4)
    assert (root.own_parameters, root.parameters) == (8, 28)


def test_source_lines_add_up_to_the_total():
    summary = summarize(Tied(), torch.zeros(1, 5, dtype=torch.long))
    assert sum(line.macs for line in summary.lines) == summary.macs
    (line,) = summary.lines
    assert line.file == __file__
    assert line.code == "return self.head(self.body(self.embed(ids)))"


def test_lazy_layers_are_counted_after_they_took_shape():
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(10))
    summary = summarize(model, torch.empty(1, 3, 6, 6))
    assert summary.parameters == 8 * 27 + 8 + 128 * 10 + 10
    assert [layer.type for layer in summary.layers[1:]] == ["Conv2d", "Flatten", "Linear"]
    assert nn.parameter.is_lazy(model[0].weight)


def test_pruned_weights():
    """torchinfo fails on the mask of a pruned weight that has no data."""
    model = nn.Sequential(nn.Linear(4, 4))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    assert summarize(model, torch.empty(1, 4)).parameters == 20


def test_a_kernel_size_of_its_own_kind():
    """torchinfo refuses it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2)))
    model[0].kernel_size = 1.5
    summary = summarize(model, torch.empty(1, 4))
    assert [layer.path for layer in summary.layers] == ["", "0", "1", "1.0"]
    assert (summary.parameters, summary.macs) == (30, 24)


def test_outputs_of_any_type():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            y = self.linear(x)
            return {"a": y, "b": [y, None, "text"], "c": Box(y)}

    assert summarize(Odd(), torch.empty(1, 4)).macs == 16


@pytest.mark.parametrize(
    ("inputs", "macs"),
    [
        (torch.empty(3, 4), 3 * 8),
        ((torch.empty(3, 4),), 3 * 8),
        ({"x": torch.empty(3, 4)}, 3 * 8),
        ((3, 4), 3 * 8),
        ([3, 4], 3 * 8),
        ({"x": torch.empty(3, 4), "twice": True}, 2 * 3 * 8),
        ((torch.empty(3, 4), True), 2 * 3 * 8),
    ],
)
def test_inputs_as_the_forward_takes_them(inputs, macs):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x, twice=False):
            y = self.linear(x)
            return y + self.linear(x) if twice else y

    summary = summarize(Net(), inputs)
    assert (summary.macs, summary.input_source) == (macs, "given")


def test_batch_and_dtype():
    model = nn.Linear(4, 2)
    summary = summarize(model, torch.empty(1, 4), batch=6, dtype=torch.bfloat16)
    assert summary.macs == 6 * 8
    assert summary.dtypes == {"bfloat16": 10}
    assert summary.inputs == "6x4 bfloat16"
    assert model.weight.dtype == torch.float32


class TestInputsThatAreFound:
    def test_in_the_dtype_of_the_weights(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2)).half()
        assert summarize(model).inputs == "1x3x32x32 float16"
        assert summarize(model, (1, 3, 32, 32)).inputs == "1x3x32x32 float16"
        assert summarize(nn.Embedding(4, 4), (1, 7)).inputs == "1x7 int64"

    def test_an_argument_by_keyword_only(self):
        class Net(nn.Linear):
            def forward(self, *, x):
                return super().forward(x)

        assert summarize(Net(4, 4)).inputs == "x=1x4 float32"

    def test_beside_the_model(self):
        found = {"example_inputs": lambda: {"x": torch.empty(2, 3, 8, 8)}}
        summary = summarize(
            nn.Conv2d(3, 4, 1), namespace={"example_inputs": torch.empty(2, 3, 8, 8)}
        )
        assert (summary.inputs, summary.input_source) == ("2x3x8x8 float32", "declared")
        with pytest.raises(KeyError):
            found["x"]

    def test_declared_by_the_model(self):
        model = nn.Conv2d(3, 4, 1)
        model.example_input_array = torch.empty(1, 3, 5, 7)
        assert summarize(model).inputs == "1x3x5x7 float32"
        model = nn.Sequential(nn.Conv2d(2, 4, 1))
        model.image_size = 20
        assert summarize(model).inputs == "1x2x20x20 float32"

    def test_guessed_from_the_first_layer_and_labelled(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 7), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))
        summary = summarize(model)  # only 32x32 fits
        assert (summary.inputs, summary.input_source) == ("1x3x32x32 float32", "guessed")
        assert summary.input_origin == "0 (Conv2d)"

    def test_guessed_from_the_size_in_an_error(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 1)

            def forward(self, x):
                if x.shape[-1] != 378:
                    raise ValueError(f"input width ({x.shape[-1]}) doesn't match model (378)")
                return self.conv(x)

        assert summarize(Net()).inputs == "1x3x378x378 float32"

    def test_strict_refuses_a_guess(self):
        with pytest.raises(UsageError, match="--strict"):
            summarize(nn.Linear(4, 4), strict=True)
        model = nn.Linear(4, 4)
        model.example_input_array = torch.empty(1, 4)
        assert summarize(model, strict=True).macs == 16

    def test_several_unknown_arguments_are_named_and_not_guessed(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(4, 4)

            def forward(self, x, mask):
                return self.linear(x) * mask

        summary = summarize(Net())
        assert (summary.rung, summary.macs, summary.parameters) == ("parameters", None, 20)
        assert "(x, mask)" in summary.notes[0]
        with pytest.raises(UsageError, match="--input mask=SHAPE"):
            summarize(Net(), train=True)


class Branch(nn.Module):
    """Its path depends on data."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x):
        x = self.first(x)
        if x.abs().sum() >= 0:
            x = self.second(x)
        return x


def line_of(text):
    with open(__file__) as file:  # noqa: PTH123
        return next(i for i, line in enumerate(file, 1) if text in line and "line_of" not in line)


class TestRungs:
    def test_meta_when_it_can(self):
        summary = summarize(nn.Linear(4, 4), torch.empty(1, 4))
        assert (summary.rung, summary.attempts) == ("meta", ())

    def test_fake_where_meta_tensors_are_refused(self):
        class NoMeta(nn.Linear):
            def forward(self, x):
                if x.is_meta:
                    raise NotImplementedError("not on meta")
                return super().forward(x)

        summary = summarize(NoMeta(4, 4), torch.empty(1, 4))
        assert (summary.rung, summary.macs) == ("fake", 16)
        assert [a.rung for a in summary.attempts] == ["meta"]

    def test_real_tensors_for_data_dependent_control_flow(self):
        summary = summarize(Branch(4), torch.ones(1, 4))
        assert (summary.rung, summary.macs) == ("cpu", 32)
        assert [a.rung for a in summary.attempts] == ["meta", "fake"]
        for attempt in summary.attempts:
            assert attempt.file == __file__
            assert attempt.line == line_of("if x.abs().sum() >= 0:")

    def test_parameters_and_the_table_so_far_when_too_large(self, monkeypatch):
        monkeypatch.setattr("ptools.summary.ladder.free_memory", lambda: 4 * 100)
        summary = summarize(lambda: Branch(100), torch.ones(1, 100))
        assert summary.stopped.line == line_of("if x.abs().sum() >= 0:")
        assert summary.macs == 100 * 100
        assert layers(summary)["first"].calls == 1
        assert layers(summary)["second"].calls == 0
        assert "quarter" in summary.attempts[-1].reason

    def test_torchscript(self):
        model = torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        summary = summarize(model, torch.empty(3, 4))
        assert (summary.macs, summary.parameters) == (3 * (32 + 16), 58)
        assert "TorchScript" in summary.notes[0]
        assert summarize(nn.Sequential(model, nn.Linear(2, 2)), torch.empty(1, 4)).macs == 52

    def test_compiled(self):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        assert summarize(torch.compile(model), torch.empty(1, 4)).macs == 32
        model.compile()
        assert summarize(model, torch.empty(1, 4)).macs == 32

    def test_data_parallel_is_unwrapped(self):
        summary = summarize(nn.DataParallel(nn.Linear(4, 4)), torch.empty(1, 4))
        assert (summary.model, summary.macs) == ("Linear", 16)


class TestForwardErrors:
    def test_a_wrong_shape_names_layer_line_and_shapes(self):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(100, 10))
        with pytest.raises(ForwardError) as caught:
            summarize(model, torch.empty(1, 3, 8, 8))
        error = caught.value
        assert re.search(r"in 2 \(Linear\).*1x288 and 100x10", error.message)
        assert error.exit_code == 1
        rows = layers(error.summary)
        assert rows["0"].outputs == ((1, 8, 6, 6),)
        assert rows["2"].inputs == ((1, 288),)
        assert rows["2"].outputs == ()

    def test_a_missing_argument(self):
        class Net(nn.Linear):
            def forward(self, x, mask):
                return super().forward(x) * mask

        with pytest.raises(ForwardError, match="mask") as caught:
            summarize(Net(4, 4), torch.empty(1, 4))
        assert "(x, mask)" in caught.value.hint

    def test_training_with_one_value_a_channel(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
        with pytest.raises(ForwardError) as caught:
            summarize(model, backward=True)
        assert "--batch 2" in caught.value.hint
        assert summarize(model, backward=True, batch=2).macs == 2 * 224 * 224 * 12

    def test_an_empty_model(self):
        summary = summarize(nn.Identity(), torch.empty(3))
        assert (summary.parameters, summary.macs) == (0, 0)

    def test_not_a_model(self):
        with pytest.raises(UsageError, match="tuple"):
            summarize(lambda: (1, 2))


def test_building_allocates_no_weights(monkeypatch):
    """A terabyte of weights; also where the constructor reads small tensors."""

    class Huge(nn.Module):
        def __init__(self):
            super().__init__()
            rates = [rate.item() for rate in torch.linspace(0, 1, 4)]
            self.layers = nn.ModuleList(nn.Linear(262_144, 262_144) for _ in rates)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    summary = summarize(Huge, torch.empty(1, 262_144))
    assert summary.parameters == 4 * (262_144**2 + 262_144)
    assert summary.macs == 4 * 262_144**2


def test_a_constructor_that_needs_real_tensors_is_bounded(monkeypatch):
    def build():
        return nn.Linear(int(torch.ones(100, 100).sum().item()), 4)

    assert summarize(build, torch.empty(1, 10_000)).parameters == 40_004
    monkeypatch.setattr("ptools.summary.build.free_memory", lambda: 4 * 50_000)
    with pytest.raises(PtoolsError, match="quarter of the free memory"):
        summarize(build, torch.empty(1, 10_000))


def test_the_public_names():
    assert ptools.summarize is summarize
    assert ptools.summarize(nn.Linear(2, 2)).to_dict()["parameters"] == 6
