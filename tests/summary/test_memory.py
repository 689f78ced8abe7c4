"""Training memory against the real allocator, and the search for the largest batch."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ptools.errors import PtoolsError, UsageError
from ptools.summary import summarize
from ptools.summary.memory import _largest_batch
from ptools.summary.report import TrainingMemory


def real_peak(model, x, make_optimizer):
    """Peak of the CPU allocator in the second training step, from the profiler's events."""
    optimizer = make_optimizer(model.parameters())

    def step():
        loss = F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long))
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()

    step()
    states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    standing = [*model.parameters(), *model.buffers(), x, *states]
    alive = peak = sum(t.untyped_storage().nbytes() for t in standing)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def transformer():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    pool = nn.Sequential(nn.Flatten(), nn.Linear(32 * 20, 10))
    return nn.Sequential(nn.TransformerEncoder(layer, 3), pool)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd(lr=0.1, momentum=0.9)": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("build", "shape"), [(small_cnn, (8, 3, 32, 32)), (transformer, (4, 20, 32))]
)
def test_the_peak_is_the_real_one(build, shape, optimizer):
    x = torch.randn(shape)
    predicted = summarize(build, x, train=True, optimizer=optimizer).memory.peak_bytes
    assert predicted == pytest.approx(real_peak(build(), x, OPTIMIZERS[optimizer]), rel=0.01)


def test_the_parts_are_the_peak():
    memory = summarize(small_cnn, torch.empty(8, 3, 32, 32), train=True).memory
    parts = (memory.parameters, memory.buffers, memory.gradients, memory.optimizer_state,
             memory.inputs, memory.activations, memory.temporary)  # fmt: skip
    assert sum(parts) == memory.peak_bytes
    weights = 4 * sum(p.numel() for p in small_cnn().parameters())
    assert memory.parameters == weights
    assert memory.inputs == 4 * 8 * 3 * 32 * 32
    assert 2 * weights <= memory.optimizer_state <= 2 * weights + 1000  # and Adam's step counters
    assert memory.batch == 8
    assert memory.phase == "backward"


def test_activations_stand_at_the_layer_that_made_them():
    model = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 4))
    summary = summarize(model, torch.empty(10, 8), train=True)
    kept = {layer.path: layer.activation_bytes for layer in summary.layers}
    assert kept["1"] == 4 * 10 * 16  # sigmoid keeps its output
    assert kept["0"] == 0  # and nobody its input


def test_frozen_parameters_have_no_gradient_and_no_state():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    model[0].requires_grad_(False)
    memory = summarize(model, torch.empty(1, 64), train=True).memory
    assert memory.optimizer_state < 4 * 4 * (64 * 2 + 2)


def test_checkpointing_is_seen():
    from torch.utils.checkpoint import checkpoint

    class Deep(nn.Module):
        def __init__(self, save):
            super().__init__()
            self.save = save
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)) for _ in range(8)
            )

        def forward(self, x):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False) if self.save else block(x)
            return x

    x = torch.empty(256, 64)
    plain, saving = (
        summarize(Deep(save), x, train=True, optimizer="sgd").memory.after_forward_bytes
        for save in (False, True)
    )
    assert saving < 0.6 * plain


def test_the_models_own_loss_is_used():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            y = self.linear(x)
            return {"loss": y.sum(), "logits": torch.stack([y] * 1000).sum()}

    assert summarize(WithLoss(), torch.empty(2, 4), train=True).memory.loss == "the model's own"


def test_a_workspace_that_cant_be_seen_is_said():
    """oneDNN's LSTM keeps one; a GRU runs as plain products."""
    memory = summarize(nn.LSTM(8, 8), torch.empty(4, 2, 8), train=True).memory
    assert memory.hidden == ("aten::mkldnn_rnn_layer",)
    assert summarize(nn.GRU(8, 8), torch.empty(4, 2, 8), train=True).memory.hidden == ()


def test_nothing_to_train():
    model = nn.Linear(4, 4).requires_grad_(False)
    with pytest.raises(PtoolsError, match="gradient"):
        summarize(model, torch.empty(1, 4), train=True)


@pytest.mark.parametrize(
    "text", ["adamq", "sgd(lr=)", "sgd(0.1)", "adamw(lr=-1)", "sgd(speed=1)", "lbfgs"]
)
def test_bad_optimizers(text):
    with pytest.raises(UsageError):
        summarize(nn.Linear(4, 4), torch.empty(1, 4), train=True, optimizer=text)


def test_without_an_optimizer():
    memory = summarize(nn.Linear(4, 4), torch.empty(1, 4), train=True, optimizer="none").memory
    assert memory.optimizer_state == 0


def known(batch, peak):
    return TrainingMemory("adamw", "", batch, peak, *[0] * 7, "backward", None, 0)


@pytest.mark.parametrize("limit", [0, 150, 209, 210, 211, 5000, 123_456])
@pytest.mark.parametrize("start", [1, 4, 300])
def test_the_largest_batch(limit, start):
    asked = []

    def peak(batch):
        asked.append(batch)
        return 100 + 10 * batch + batch // 7  # nearly linear

    batch, at = _largest_batch(peak, known(start, peak(start)), limit)
    best = max((b for b in range(20_000) if peak(b) <= limit and b > 0), default=0)
    assert batch == best
    if batch:
        assert at == peak(batch)


def test_fit_on_a_model():
    x = torch.empty(1, 3, 32, 32)
    limit = 10_000_000
    memory = summarize(small_cnn, x, fit=limit).memory
    batch = memory.largest_batch
    assert memory.largest_batch_peak_bytes <= limit
    peaks = [
        summarize(small_cnn, x, train=True, batch=b).memory.peak_bytes for b in (batch, batch + 1)
    ]
    assert peaks[0] <= limit < peaks[1]
