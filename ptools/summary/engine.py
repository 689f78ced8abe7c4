"""`summarize`: find an input, climb the ladder, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptools.errors import PtoolsError, UsageError
from ptools.files import shown_path
from ptools.guess import in_its_dtype
from ptools.inputs import Inputs
from ptools.replica import unwrapped
from ptools.search import NEEDS_A_BATCH, find_run, wants
from ptools.summary.build import build
from ptools.summary.ladder import Run, Subject, attempt_of, climb, has_script
from ptools.summary.layers import (
    dtypes_of,
    layers_of,
    lines_of,
    not_counted,
    operations_of,
    type_name,
)
from ptools.summary.report import Attempt, Summary
from ptools.summary.trace import Trace
from ptools.summary.tree import nodes


class ForwardError(PtoolsError):
    """The forward failed on real tensors or in the same way on all others.

    `summary` holds the table up to the layer that failed.
    """

    def __init__(self, message: str, hint: str | None, summary: Summary) -> None:
        super().__init__(message, hint)
        self.summary = summary


def summarize(
    model: nn.Module | Callable[[], nn.Module],
    inputs: Any = None,
    *,
    backward: bool = False,
    train: bool = False,
    optimizer: str = "adamw",
    fit: int | None = None,
    batch: int | None = None,
    dtype: torch.dtype | None = None,
    advise: bool = False,
    strict: bool = False,
    tensorboard: Path | None = None,
    namespace: Mapping[str, Any] | None = None,
) -> Summary:
    """Layers, shapes, parameters, MACs and memory of a model, without allocating its weights.

    The model is left exactly as it was: all runs are on a stand-in without data. Pass a function
    that builds it and the model itself is never allocated either.

    `inputs`: tensors as the forward takes them (a tuple is positional, a dict named, integers
    are the shape of one tensor, anything else is one argument), or None to use what the model
    declares, else to guess; see `input_source`.
    `backward` counts the backward as well; `train` also measures the memory of a training step
    with `optimizer` ("adamw", "sgd(lr=0.1, momentum=0.9)", any of `torch.optim`, "none"), and
    `fit` (bytes) finds the largest batch within it. These run in training mode, all else in eval
    mode. `batch` and `dtype` change the inputs' first dimension and the floating-point dtype.
    `namespace` is where `example_inputs` is looked for. `tensorboard` is a folder for the graph.

    Raises ForwardError if the forward fails, UsageError if `strict` and the input is a guess, and
    if there is none at all but something was asked for that needs a run.

        >>> summary = ptools.summarize(torchvision.models.resnet50(), torch.empty(1, 3, 224, 224))
        >>> summary.parameters, summary.macs
        (25557032, 4089184256)
    """
    factory = None if isinstance(model, nn.Module) else model
    built = unwrapped(build(factory) if factory is not None else model)  # type: ignore[arg-type]
    backward = backward or train or fit is not None
    subject = Subject(built, factory, training=backward, dtype=dtype)

    def adapted(candidate: Inputs) -> Inputs:
        candidate = candidate if batch is None else candidate.with_batch(batch)
        candidate = in_its_dtype(candidate, built)
        return candidate if dtype is None else candidate.with_dtype(dtype)

    def attempt(candidate: Inputs, patient: bool) -> Run:
        return climb(subject, candidate, backward=backward, patient=patient)

    found = find_run(built, inputs, namespace or {}, adapted, strict, attempt)
    chosen, run, notes = found.inputs, found.run, found.notes
    summary = _report(type_name(built), subject, chosen, run, notes)
    if chosen is None or run is None:
        if backward or advise or tensorboard is not None:
            raise UsageError(notes[0])
        return summary
    if summary.stopped and run.other_inputs_may_do:
        raise _forward_error(summary, built)
    if summary.stopped:
        return summary
    if tensorboard is not None:
        from ptools.summary.graph import write_graph

        folder = write_graph(subject, chosen, run.rung, tensorboard, summary.model)
        note = f"graph written to {folder}; to see it: tensorboard --logdir {tensorboard}"
        summary = replace(summary, notes=(*summary.notes, note))
    if train or fit is not None:
        from ptools.summary.memory import measure

        measured = measure(subject, chosen, optimizer, fit)
        summary = replace(
            summary,
            memory=measured.memory,
            layers=layers_of(run.nodes, run.trace, measured.activations),
        )
    if advise:
        from ptools.summary.advice import advise as advice_for

        summary = replace(summary, advice=advice_for(run, subject, chosen))
    return summary


def _report(
    name: str,
    subject: Subject,
    chosen: Inputs | None,
    run: Run | None,
    notes: tuple[str, ...],
) -> Summary:
    found = run.nodes if run else []
    found = found or nodes(subject.stand_in("meta"))
    if has_script(node.module for node in found):
        notes += ("TorchScript hides which layer runs: MACs stand at the outermost one",)
    trace = run.trace if run else Trace()
    layers = layers_of(found, trace)
    root = layers[0]
    ran = run is not None and (bool(trace.calls) or trace.stop is None)
    stop = trace.stop
    has_backward = any(call.backward for call in trace.calls)
    return Summary(
        model=name,
        rung=run.rung if run and ran else "parameters",
        attempts=run.attempts if run else (),
        inputs=str(chosen) if chosen else None,
        input_source=chosen.source if chosen else None,
        input_origin=chosen.origin if chosen else None,
        parameters=root.parameters,
        trainable=root.trainable,
        buffers=root.buffers,
        bytes=root.bytes,
        dtypes=dtypes_of(found),
        macs=root.macs if ran else None,
        backward_macs=root.backward_macs if has_backward else None,
        layers=layers,
        operations=operations_of(trace.calls),
        lines=lines_of(trace.calls),
        not_counted=not_counted(trace.calls),
        stopped=attempt_of(run.rung, stop) if run and stop else None,
        notes=notes,
    )


def _forward_error(summary: Summary, model: nn.Module) -> ForwardError:
    stop: Attempt = summary.stopped  # type: ignore[assignment]
    layer = next((la for la in summary.layers if la.path == stop.layer), None)
    place = f" in {layer.path} ({layer.type})" if layer and layer.path else ""
    line = f" at {shown_path(stop.file)}:{stop.line}" if stop.file else ""
    hint = f"{wants(model)}; it was given {summary.inputs}"
    if NEEDS_A_BATCH in stop.reason:
        hint = "in training mode a BatchNorm needs several values a channel: pass --batch 2 or more"
    message = f"the forward failed{place}{line}: {stop.reason}"
    return ForwardError(message, hint, replace(summary, attempts=()))
