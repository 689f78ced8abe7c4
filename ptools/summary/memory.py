"""Memory of a training step, on fake tensors: what is alive when, of which kind, made by whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ptools.errors import PtoolsError
from ptools.inputs import Inputs
from ptools.summary.attribution import ModuleStack, tensors_in
from ptools.summary.ladder import Stage, Subject, staged
from ptools.summary.optimizer import make_optimizer
from ptools.summary.report import TrainingMemory
from ptools.summary.trace import quiet
from ptools.summary.tracker import Tracker

_LARGEST_BATCH = 1 << 20


@dataclass(frozen=True)
class Measured:
    """`activations` are the bytes that each layer path keeps from forward to backward."""

    memory: TrainingMemory
    activations: dict[str, int]


def measure(subject: Subject, inputs: Inputs, optimizer: str, fit: int | None = None) -> Measured:
    """The second training step (the first makes the optimizer's state), at its peak.

    Loss: what the model returns as `loss`; cross-entropy for one output of (batch, classes); else
    the mean of squares of the outputs. With `fit` (bytes) the largest batch whose peak is within
    it is searched too.

    Raises PtoolsError if the step can't be run on fake tensors.
    """
    inputs = _with_labels(subject.model, inputs)
    measured = _step(subject, inputs, optimizer)
    if fit is None:
        return measured
    batch, peak = _largest_batch(
        lambda size: _step(subject, inputs.with_batch(size), optimizer).memory.peak_bytes,
        measured.memory,
        fit,
    )
    memory = replace(
        measured.memory, limit_bytes=fit, largest_batch=batch, largest_batch_peak_bytes=peak
    )
    return Measured(memory, measured.activations)


def _step(subject: Subject, inputs: Inputs, optimizer: str) -> Measured:
    try:
        with quiet(), staged("fake", subject, inputs) as stage:
            return _two_steps(stage, _batch_of(inputs), optimizer)
    except PtoolsError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        raise PtoolsError(
            f"a training step of this model can't be simulated: "
            f"{type(error).__name__}: {reason[0]}",
            hint="leave --train and --fit out; --backward counts operations without it",
        ) from error


def _two_steps(stage: Stage, batch: int | None, optimizer_text: str) -> Measured:
    model, found, args, kwargs = stage
    tracker = Tracker(ModuleStack(found))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(optimizer_text, trainable)
    for kind, tensors in (
        ("parameters", model.parameters()),
        ("buffers", model.buffers()),
        ("inputs", tensors_in((args, kwargs))),
    ):
        for tensor in tensors:
            tracker.add(tensor, kind)
    for parameter in trainable:
        parameter.register_post_accumulate_grad_hook(
            lambda p: tracker.add(p.grad, "gradients") if p.grad is not None else None
        )
    with tracker:
        for _ in range(2):
            loss, loss_kind = _forward(tracker, model, args, kwargs)
            activations, after_forward = tracker.kept("activations"), tracker.total
            tracker.phase = "backward"
            loss.backward()
            del loss
            _optimize(tracker, optimizer)
            for parameter in trainable:
                parameter.grad = None
    memory = _at_peak(tracker, optimizer_text, loss_kind, batch, after_forward)
    return Measured(memory, activations)


def _forward(
    tracker: Tracker, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, str]:
    tracker.phase = "forward"
    tracker.reset_peak()
    return _loss(model(*args, **kwargs))


def _optimize(tracker: Tracker, optimizer: torch.optim.Optimizer | None) -> None:
    tracker.phase = "optimizer step"
    if optimizer is not None:
        optimizer.step()
        for tensor in tensors_in(list(optimizer.state.values())):
            tracker.add(tensor, "optimizer_state")


def _at_peak(
    tracker: Tracker, optimizer: str, loss: str, batch: int | None, after_forward: int
) -> TrainingMemory:
    at = tracker.at_peak.get
    return TrainingMemory(
        optimizer=optimizer,
        loss=loss,
        batch=batch,
        peak_bytes=tracker.peak,
        parameters=at("parameters", 0),
        buffers=at("buffers", 0),
        gradients=at("gradients", 0),
        optimizer_state=at("optimizer_state", 0),
        inputs=at("inputs", 0),
        activations=at("activations", 0),
        temporary=at("temporary", 0),
        phase=tracker.peak_phase,
        layer=tracker.peak_path or None,
        after_forward_bytes=after_forward,
        hidden=tuple(sorted(tracker.hidden)),
    )


def _batch_of(inputs: Inputs) -> int | None:
    first = next(iter(inputs.specs()), None)
    return first.shape[0] if first and first.shape else None


def _loss(output: Any) -> tuple[torch.Tensor, str]:
    """The model's own loss if it returns one, else a usual one for the output's shape."""
    own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(own, torch.Tensor):
        return own, "the model's own"
    tensors = [t for t in tensors_in(output) if t.requires_grad]
    if not tensors:
        raise PtoolsError(
            "no output of the forward requires a gradient, so there is nothing to train",
            hint="unfreeze some parameters, or leave --train out",
        )
    if len(tensors) == 1 and tensors[0].dim() == 2 and tensors[0].is_floating_point():
        target = torch.zeros(len(tensors[0]), dtype=torch.int64, device=tensors[0].device)
        return nn.functional.cross_entropy(tensors[0], target), "cross-entropy of the output"
    squares = torch.stack([t.float().square().mean() for t in tensors]).sum()
    return squares, "mean square of the outputs"


def _with_labels(model: nn.Module, inputs: Inputs) -> Inputs:
    """Hugging Face language models compute their own loss when they get labels."""
    heads = ("LMHead", "ForCausalLM", "ForMaskedLM", "ForConditionalGeneration")
    is_language_model = any(head in type(model).__name__ for head in heads)
    ids = inputs.kwargs.get("decoder_input_ids", inputs.kwargs.get("input_ids"))
    if not is_language_model or ids is None or "labels" in inputs.kwargs:
        return inputs
    return replace(inputs, kwargs={**inputs.kwargs, "labels": ids})


def _largest_batch(
    peak_of: Callable[[int], int], known: TrainingMemory, limit: int
) -> tuple[int, int]:
    """The largest batch within `limit` bytes, and its peak; (0, ...) if none is.

    The peak grows about linearly with the batch, so each trial is where the line through the
    last two meets the limit, kept inside the bracket that is known.
    """
    fits: tuple[int, int] | None = None
    over: tuple[int, int] | None = None
    trial, peak = known.batch or 1, known.peak_bytes
    last: tuple[int, int] | None = None
    while True:
        if peak <= limit:
            fits = (trial, peak)
        else:
            over = (trial, peak)
        low, high = fits[0] if fits else 0, over[0] if over else _LARGEST_BATCH
        if high - low <= 1:
            return fits or (0, (over or (0, 0))[1])
        slope = (peak - last[1]) / (trial - last[0]) if last and last[0] != trial else 0.0
        guess = trial + int((limit - peak) / slope) if slope > 0 else 2 * trial
        last = (trial, peak)
        trial = min(max(guess, low + 1), high - 1)
        peak = peak_of(trial)
