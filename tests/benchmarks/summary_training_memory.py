"""How close the predicted memory of a training step is to what the allocator really gives out.

Run `python tests/benchmarks/summary_training_memory.py`; torchvision and transformers must be
installed, and 4 GB of memory free. The truth: the model is trained on the CPU for two steps, the
second under `torch.profiler` with every allocation and release recorded; the peak of their running
sum, on top of the parameters, buffers, inputs and optimizer state that were there before, is the
real peak of tensor memory. The prediction is `ptools.summarize(..., train=True).memory.peak_bytes`
of the function that builds the same model, which allocates none of it. Each model has a fresh
process. Not measured: CUDA, where the context and the libraries' workspaces come on top.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from harness import import_torchvision, in_fresh_process, show, show_versions
from torch import nn

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd(lr=0.1, momentum=0.9)": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": torch.optim.AdamW,
}
SGD, ADAMW = OPTIMIZERS


class Tagger(nn.Module):
    """Two LSTM layers over an embedding, and the classes of the last token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10000, 256)
        self.lstm = nn.LSTM(256, 512, num_layers=2, batch_first=True)
        self.head = nn.Linear(512, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embedding(ids))[0][:, -1])


def convolutions(inputs: int, outputs: int) -> nn.Sequential:
    first = (nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True))
    second = (nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True))
    return nn.Sequential(*first, *second)


class UNet(nn.Module):
    """Three levels down and up, with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([convolutions(3, 32), convolutions(32, 64)])
        self.middle = convolutions(64, 128)
        self.up = nn.ModuleList([nn.ConvTranspose2d(c, c // 2, 2, 2) for c in (128, 64)])
        self.merge = nn.ModuleList([convolutions(128, 64), convolutions(64, 32)])
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


def hugging_face(model: str, config: str, **settings: int) -> nn.Module:
    import_torchvision()
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**settings))


@dataclass(frozen=True)
class Run:
    name: str
    build: Callable[[], nn.Module]
    optimizer: str
    shape: tuple[int, ...]
    kind: str = "image"

    def inputs(self) -> Any:
        """What `ptools.summarize` is given too."""
        if self.kind == "image":
            return torch.randn(self.shape)
        ids = torch.randint(0, 1000, self.shape)
        return {"input_ids": ids, "labels": ids} if self.kind == "language" else ids


def vision(name: str, batch: int, optimizer: str) -> Run:
    build = lambda: import_torchvision().models.get_model(name, weights=None)  # noqa: E731
    return Run(f"{name}, batch {batch}", build, optimizer, (batch, 3, 224, 224))


RUNS = (
    vision("resnet50", 8, SGD),
    vision("resnet50", 8, ADAMW),
    vision("mobilenet_v2", 8, SGD),
    vision("densenet121", 8, SGD),
    vision("vit_b_16", 4, ADAMW),
    vision("swin_t", 4, ADAMW),
    vision("convnext_tiny", 4, ADAMW),
    Run(
        "BERT, 4 layers, 4 x 128 tokens",
        lambda: hugging_face("BertForMaskedLM", "BertConfig", num_hidden_layers=4),
        ADAMW,
        (4, 128),
        "language",
    ),
    Run(
        "GPT-2, 4 layers, 2 x 128 tokens",
        lambda: hugging_face("GPT2LMHeadModel", "GPT2Config", n_layer=4),
        ADAMW,
        (2, 128),
        "language",
    ),
    Run("LSTM, 2 layers, 16 x 100 tokens", Tagger, ADAMW, (16, 100), "ids"),
    Run("U-Net, batch 4, 128 x 128", UNet, ADAMW, (4, 3, 128, 128)),
)


def loss_of(model: nn.Module, inputs: Any) -> torch.Tensor:
    """The model's own loss, cross-entropy of classes, or the mean of squares."""
    if isinstance(inputs, dict):
        return model(**inputs).loss
    output = model(inputs)
    if output.dim() == 2:
        return F.cross_entropy(output, torch.zeros(len(output), dtype=torch.int64))
    return output.square().mean()


def bytes_of(tree: Any) -> int:
    tensors = [t for t in torch.utils._pytree.tree_leaves(tree) if isinstance(t, torch.Tensor)]
    return sum(storage.nbytes() for storage in {t.untyped_storage() for t in tensors})


def real_peak(run: Run) -> int:
    """Bytes alive at the peak of the second training step."""
    model, inputs = run.build().train(), run.inputs()
    optimizer = OPTIMIZERS[run.optimizer](model.parameters())

    def step() -> None:
        loss = loss_of(model, inputs)
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()

    step()
    states = list(optimizer.state.values())
    resident = bytes_of([list(model.parameters()), list(model.buffers()), inputs, states])
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return resident + peak


def measure(run: Run) -> dict[str, Any]:
    import ptools

    start = time.perf_counter()
    summary = ptools.summarize(run.build, run.inputs(), train=True, optimizer=run.optimizer)
    assert summary.memory is not None
    seconds, predicted = time.perf_counter() - start, summary.memory.peak_bytes
    return {"real": real_peak(run), "predicted": predicted, "seconds": seconds}


def row(number: int, run: Run) -> list[str]:
    found = in_fresh_process(__file__, str(number))
    optimizer = "SGD, momentum" if run.optimizer == SGD else "AdamW"
    if isinstance(found, str):
        return [run.name, optimizer, found, "", "", ""]
    real, predicted = found["real"], found["predicted"]
    mib = [f"{figure / 2**20:.1f}" for figure in (real, predicted)]
    error = f"{100 * (predicted / real - 1):+.2f}%"
    return [run.name, optimizer, *mib, error, f"{found['seconds']:.1f}"]


def main() -> None:
    columns = ["model", "optimizer", "real, MiB", "predicted, MiB", "error", "prediction took, s"]
    rows = [row(number, run) for number, run in enumerate(RUNS)]
    show("Peak of tensor memory in a training step, on the CPU", columns, rows)
    show_versions("torchvision", "transformers")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measure(RUNS[int(sys.argv[1])])))
    else:
        main()
