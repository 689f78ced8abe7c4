"""MACs of single operations against closed forms worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ptools.summary import ForwardError, summarize
from ptools.summary.flops import flops_of


class Call(nn.Module):
    """A model whose forward is `function`, with `weights` as bare parameters."""

    def __init__(self, function, *weights):
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(w) for w in weights)

    def forward(self, *args):
        return self.function(*args, *self.weights)


def empty(*shape):
    return torch.empty(shape)


class First(nn.Module):
    """Only the first output, so that `backward` meets the same as a user's loss."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args):
        return self.module(*args)[0]


LSTM = 4 * (16 * 32 + 32 * 32)  # four gates, input and hidden product each
GRU = 3 * (16 * 32 + 32 * 32)
ATTENTION = 4 * 10 * 64 * 64 + 2 * 10 * 10 * 64  # q, k, v, output; scores and values

FORWARD = {
    "linear on 3-D": (nn.Linear(8, 16), (empty(2, 10, 8),), 2 * 10 * 8 * 16),
    "conv": (nn.Conv2d(3, 8, 3, padding=1), (empty(2, 3, 16, 16),), 2 * 256 * 8 * 3 * 9),
    "conv without batch": (nn.Conv2d(3, 8, 3, padding=1), (empty(3, 16, 16),), 256 * 8 * 3 * 9),
    "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), (empty(2, 8, 16, 16),), 2 * 256 * 8 * 9),
    "grouped": (nn.Conv2d(8, 16, 3, padding=1, groups=4), (empty(1, 8, 4, 4),), 16 * 16 * 2 * 9),
    "conv 1d": (nn.Conv1d(4, 6, 5), (empty(1, 4, 20),), 16 * 6 * 4 * 5),
    "conv 3d": (nn.Conv3d(2, 4, 3), (empty(1, 2, 6, 6, 6),), 64 * 4 * 2 * 27),
    "transposed stride 2": (
        nn.ConvTranspose2d(4, 6, 2, stride=2),
        (empty(1, 4, 8, 8),),
        64 * 4 * 6 * 4,
    ),
    "transposed grouped": (
        nn.ConvTranspose2d(4, 8, 3, groups=2),
        (empty(1, 4, 8, 8),),
        64 * 4 * 4 * 9,
    ),
    "multi-head attention": (
        First(nn.MultiheadAttention(64, 4, batch_first=True)),
        (empty(1, 10, 64),) * 3,
        ATTENTION,
    ),
    "encoder layer": (
        nn.TransformerEncoderLayer(64, 4, 128, batch_first=True),
        (empty(1, 10, 64),),
        ATTENTION + 2 * 10 * 64 * 128,
    ),
    "lstm": (First(nn.LSTM(16, 32)), (empty(7, 2, 16),), 7 * 2 * LSTM),
    "gru": (First(nn.GRU(16, 32)), (empty(7, 2, 16),), 7 * 2 * GRU),
    "bidirectional lstm": (
        First(nn.LSTM(16, 32, bidirectional=True)),
        (empty(7, 2, 16),),
        2 * 7 * 2 * LSTM,
    ),
    "sdpa": (
        Call(F.scaled_dot_product_attention),
        (empty(2, 4, 10, 16), empty(2, 4, 12, 16), empty(2, 4, 12, 16)),
        2 * (2 * 4 * 10 * 12 * 16),
    ),
    "sdpa with fewer key heads": (
        Call(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)),
        (empty(2, 8, 10, 16), empty(2, 2, 10, 16), empty(2, 2, 10, 16)),
        2 * (2 * 8 * 10 * 10 * 16),
    ),
    "bare parameter": (Call(lambda x, w: x @ w, empty(8, 4)), (empty(3, 8),), 3 * 8 * 4),
    "einsum": (
        Call(lambda x, w: torch.einsum("bi,ijk->bjk", x, w), empty(8, 4, 2)),
        (empty(3, 8),),
        3 * 8 * 4 * 2,
    ),
    "functional conv": (Call(F.conv2d, empty(4, 3, 3, 3)), (empty(1, 3, 8, 8),), 36 * 4 * 27),
    "bilinear": (nn.Bilinear(5, 6, 7), (empty(3, 5), empty(3, 6)), 3 * 5 * 6 * 7),
    "mv": (Call(lambda x, w: w @ x, empty(5, 8)), (empty(8),), 40),
    "dot": (Call(torch.dot), (empty(8), empty(8)), 8),
    "baddbmm": (
        Call(torch.baddbmm),
        (empty(2, 3, 5), empty(2, 3, 4), empty(2, 4, 5)),
        2 * 3 * 4 * 5,
    ),
    "in-place addmm": (
        Call(lambda x, w: torch.zeros(3, 5).addmm_(x, w), empty(4, 5)),
        (empty(3, 4),),
        60,
    ),
    "cdist": (Call(torch.cdist), (empty(1, 6, 8), empty(1, 7, 8)), 6 * 7 * 8),
    "experts": (
        Call(
            lambda x, w: torch._grouped_mm(x, w, offs=torch.tensor([4, 8, 16, 32]).int()),
            empty(4, 16, 24),
        ),
        (empty(32, 16),),
        32 * 16 * 24,
    ),
    "int8 matmul": (
        Call(lambda x: torch._int_mm(x, x.t())),
        (torch.empty(32, 16, dtype=torch.int8),),
        32 * 16 * 32,
    ),
    "under inference_mode": (
        Call(torch.inference_mode()(lambda x, w: F.linear(x, w)), empty(4, 8)),
        (empty(3, 8),),
        3 * 8 * 4,
    ),
}


@pytest.mark.parametrize("case", FORWARD)
def test_forward(case):
    model, inputs, macs = FORWARD[case]
    summary = summarize(model, inputs)
    assert summary.macs == macs
    assert summary.not_counted == ()


@pytest.mark.parametrize("case", ["lstm", "multi-head attention", "encoder layer", "sdpa"])
def test_forward_on_fake_and_real_tensors(case):
    """The CPU's fused kernels hide their products from a plain FlopCounterMode."""
    from ptools.inputs import from_value
    from ptools.summary.ladder import Subject, run_on

    model, inputs, macs = FORWARD[case]
    for rung in ("fake", "cpu"):
        run = run_on(rung, Subject(model), from_value(inputs, "given", "test"), backward=False)
        assert run.trace.stop is None
        assert sum(call.flops for call in run.trace.calls) == 2 * macs, rung


@pytest.mark.parametrize(
    ("case", "ratio"),
    [("linear on 3-D", 1), ("depthwise", 1), ("grouped", 1), ("transposed grouped", 1)],
)
def test_backward_of_the_first_layer_is_its_weight_gradient(case, ratio):
    """The input needs no gradient; a weight gradient has as many products as the forward."""
    model, inputs, macs = FORWARD[case]
    summary = summarize(model, inputs, backward=True)
    assert (summary.macs, summary.backward_macs) == (macs, ratio * macs)


def test_backward_of_two_layers():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    summary = summarize(model, empty(2, 8), backward=True)
    first, second = 2 * 8 * 16, 2 * 16 * 4
    assert summary.backward_macs == first + 2 * second
    macs = {layer.path: layer.backward_macs for layer in summary.layers}
    assert (macs["0"], macs["2"]) == (first, 2 * second)


def test_backward_of_attention():
    """On meta it is composed of plain products: each of the two has two gradients."""
    weights = [empty(1, 2, 10, 16) for _ in range(3)]
    model = Call(lambda x, q, k, v: F.scaled_dot_product_attention(q, k, v), *weights)
    summary = summarize(model, empty(1), backward=True)
    assert summary.macs == 2 * (2 * 10 * 10 * 16)
    assert summary.backward_macs == 4 * (2 * 10 * 10 * 16)


def test_recomputation_counts_as_backward():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return checkpoint(self.layer, self.layer(x), use_reentrant=False)

    with set_checkpoint_early_stop(False):  # it would see that nothing of this is needed again
        summary = summarize(Checkpointed(), empty(2, 8), backward=True)
    assert summary.macs == 2 * 2 * 64
    assert summary.backward_macs == (1 + 2 + 1) * 2 * 64  # weight; weight and input; again
    assert {layer.path: layer.calls for layer in summary.layers} == {"": 1, "layer": 2}


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: torch.fft.rfft(x).real, "aten::_fft_r2c"),
        (lambda x: F.grid_sample(x, torch.zeros(1, 4, 4, 2)), "aten::grid_sampler_2d"),
        (lambda x: torch.linalg.inv(x), "aten::linalg_inv_ex"),
    ],
)
def test_what_is_not_counted_is_said(function, operation):
    summary = summarize(Call(function), empty(1, 4, 4, 4))
    assert [entry.operation for entry in summary.not_counted] == [operation]
    assert summary.not_counted[0].calls == 1


def meta(*shape):
    return torch.empty(shape, device="meta")


PACKED = meta(3, 7, 11)  # packed weights don't show their rows and columns
KERNELS = {
    "_scaled_mm": ((meta(16, 32), meta(32, 24)), meta(16, 24), 16 * 32 * 24),
    "_scaled_grouped_mm": ((meta(32, 16), meta(4, 16, 24)), meta(32, 24), 32 * 16 * 24),
    "_grouped_mm": ((meta(4, 8, 16), meta(4, 16, 24)), meta(4, 8, 24), 4 * 8 * 16 * 24),
    "_weight_int8pack_mm": ((meta(4, 64), meta(32, 64)), meta(4, 32), 4 * 64 * 32),
    "_weight_int4pack_mm": ((meta(4, 64), PACKED), meta(4, 32), 4 * 64 * 32),
    "_weight_int4pack_mm_for_cpu": ((meta(4, 64), PACKED), meta(4, 32), 4 * 64 * 32),
    "_dyn_quant_matmul_4bit": ((meta(4, 64), PACKED), meta(4, 32), 4 * 64 * 32),
    "_mixed_dtypes_linear": ((meta(4, 64), PACKED), meta(4, 32), 4 * 64 * 32),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_that_not_every_machine_can_run(name):
    """Scaled, grouped and weight-packed products, by the shapes of their operands alone."""
    arguments, out, macs = KERNELS[name]
    func = getattr(torch.ops.aten, name).default
    assert flops_of(func, arguments, {}, out) == 2 * macs


@pytest.mark.parametrize(
    ("a", "b", "out", "macs"),
    [
        ((32, 16), (4, 16, 24), (32, 24), 32 * 16 * 24),  # rows are routed to experts
        ((8, 32), (32, 24), (4, 8, 24), 8 * 32 * 24),  # the inner dimension is split
        ((4, 8, 16), (16, 24), (8, 24), 8 * 16 * 24),  # the columns are split
    ],
)
def test_groups(a, b, out, macs):
    func = torch.ops.aten._grouped_mm.default
    assert flops_of(func, (meta(*a), meta(*b)), {}, meta(*out)) == 2 * macs


def test_flex_attention_is_a_higher_order_operator():
    from torch.nn.attention.flex_attention import flex_attention

    inputs = (empty(2, 4, 16, 8), empty(2, 4, 16, 8), empty(2, 4, 16, 8))
    summary = summarize(Call(flex_attention), inputs)
    assert summary.macs == 2 * (2 * 4 * 16 * 16 * 8)
    assert "flex_attention" in [operation.name for operation in summary.operations]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x @ torch.empty(5, 5),
        lambda x: torch.bmm(x.expand(2, 3, 4), torch.empty(3, 4, 4)),
        lambda x: torch.addmm(torch.empty(7), x, torch.empty(4, 5)),
    ],
)
def test_a_product_that_torch_refuses_is_refused(function):
    with pytest.raises(ForwardError):
        summarize(Call(function), empty(3, 4))


def test_a_custom_operation_is_never_a_silent_zero():
    with torch.library._scoped_library("ptools_test", "DEF") as library:
        library.define("mine(Tensor x) -> Tensor")
        library.impl("mine", lambda x: torch.empty_like(x), "Meta")
        summary = summarize(Call(lambda x: torch.ops.ptools_test.mine(x)), empty(2, 2))
    assert [entry.operation for entry in summary.not_counted] == ["ptools_test::mine"]


def test_elementwise_and_normalisation_are_not_reported():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Hardswish(), nn.MaxPool2d(2), nn.Upsample(8),
        nn.GroupNorm(2, 8), nn.PReLU(), nn.Dropout(), nn.Softmax(1), nn.AdaptiveAvgPool2d(2),
    )  # fmt: skip
    assert summarize(model, empty(1, 3, 8, 8), backward=True).not_counted == ()


def test_dynamic_quantised_linear():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.warns(DeprecationWarning):
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert summarize(quantised, torch.ones(3, 4)).macs == 3 * (4 * 8 + 8 * 2)


def test_an_operation_that_resizes_its_argument_does_so_every_time():
    def twice(x):
        first, second = torch.zeros(2, 2), torch.zeros(2, 2)
        return x @ first.resize_(4, 3), x @ second.resize_(4, 3)

    assert summarize(Call(twice), empty(5, 4)).macs == 2 * 5 * 4 * 3
