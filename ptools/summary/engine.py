"""`summarize`: find an input, climb the ladder, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptools import inputs as feed
from ptools.errors import PtoolsError, UsageError
from ptools.files import shown_path
from ptools.inputs import Inputs
from ptools.summary.build import build
from ptools.summary.ladder import Run, Subject, attempt_of, climb, has_script, is_abstract
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

_MOST_GUESSES = 30
_GUESSING_SECONDS = 10.0


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

    `inputs`: tensors as the forward takes them (a tuple is positional, a dict named, anything
    else one argument), or None to use what the model declares, else to guess; see `input_source`.
    `backward` counts the backward as well; `train` also measures the memory of a training step
    with `optimizer` ("adamw", "sgd(lr=0.1, momentum=0.9)", any of `torch.optim`, "none"), and
    `fit` (bytes) finds the largest batch within it. These run in training mode, all else in eval
    mode. `batch` and `dtype` change the inputs' first dimension and the floating-point dtype.
    `namespace` is where `example_inputs` is looked for. `tensorboard` is a folder for the graph.

    Raises ForwardError if the forward fails, UsageError if `strict` and the input is a guess.

        >>> summary = ptools.summarize(torchvision.models.resnet50(), torch.empty(1, 3, 224, 224))
        >>> summary.parameters, summary.macs
        (25557032, 4089184256)
    """
    factory = None if isinstance(model, nn.Module) else model
    built = _unwrapped(build(factory) if factory is not None else model)  # type: ignore[arg-type]
    backward = backward or train or fit is not None
    subject = Subject(built, factory, training=backward, dtype=dtype)

    def adapted(candidate: Inputs) -> Inputs:
        candidate = candidate if batch is None else candidate.with_batch(batch)
        return candidate if dtype is None else candidate.with_dtype(dtype)

    chosen, run, notes = _find_run(subject, inputs, namespace or {}, adapted, strict, backward)
    summary = _report(type_name(built), subject, chosen, run, notes)
    if chosen is None or run is None:
        return summary
    if summary.stopped and _is_the_models_fault(run):
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


Adapt = Callable[[Inputs], Inputs]
Found = tuple[Inputs | None, Run | None, tuple[str, ...]]


def _find_run(
    subject: Subject,
    inputs: Any,
    namespace: Mapping[str, Any],
    adapted: Adapt,
    strict: bool,
    backward: bool,
) -> Found:
    """The inputs that the model runs with, the run, and what there is to say about them."""
    if inputs is not None:
        return _first_that_runs(subject, inputs, adapted, backward)
    notes: list[str] = []
    declared = feed.declared(subject.model, namespace)
    if declared is not None:
        declared = adapted(declared)
        run = climb(subject, declared, backward=backward)
        if run.trace.stop is None or not _is_the_models_fault(run):
            return declared, run, ()
        notes.append(f"{declared.origin} gives {declared}, and the forward fails with it")
    if strict:
        raise UsageError(
            "the model declares no input, and --strict refuses guesses",
            hint="pass --input, for example --input 3x224x224",
        )
    return _guess(subject, adapted, backward, notes)


def _first_that_runs(subject: Subject, inputs: Any, adapted: Adapt, backward: bool) -> Found:
    """Texts of --input may lack the batch dimension; values are taken as they are."""
    candidates: Iterator[Inputs]
    if isinstance(inputs, Inputs) and inputs.origin == "--input":
        candidates = feed.given(inputs, subject.model)
    else:
        candidates = iter((feed.from_value(inputs, "given", "inputs"),))
    first: Found | None = None
    for candidate in candidates:
        candidate = adapted(candidate)
        run = climb(subject, candidate, backward=backward)
        if run.trace.stop is None:
            return candidate, run, ()
        first = first or (candidate, run, ())
    assert first is not None
    return first


def _guess(subject: Subject, adapted: Adapt, backward: bool, notes: list[str]) -> Found:
    guesses = feed.guesses(subject.model)
    message: str | None = None
    deadline = time.monotonic() + _GUESSING_SECONDS
    for _ in range(_MOST_GUESSES):
        try:
            candidate = guesses.send(message)
        except StopIteration:
            break
        run = climb(subject, adapted(candidate), backward=backward, patient=False)
        if run.trace.stop is None or is_abstract(run.trace.stop.error):
            return adapted(candidate), run, tuple(notes)
        message = str(run.trace.stop.error)
        if time.monotonic() > deadline:
            break
    required, _ = feed.forward_arguments(subject.model)
    flags = "".join(f" --input {name}=SHAPE" for name in required) or " --input SHAPE"
    notes.append(f"no input found that the model runs with: {_wants(subject.model)}; pass{flags}")
    if message:
        notes.append(f"the last one tried failed with: {message.strip().splitlines()[0]}")
    return None, None, tuple(notes)


def _wants(model: nn.Module) -> str:
    required, optional = feed.forward_arguments(model)
    more = "".join(f", {name}=..." for name in optional[: 0 if required else 4])
    return f"the forward takes ({', '.join(required)}{more})".replace("(, ", "(")


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


def _unwrapped(model: nn.Module) -> nn.Module:
    """Without `torch.compile`, DataParallel and DistributedDataParallel around it."""
    wrappers = ("OptimizedModule", "DataParallel", "DistributedDataParallel")
    while type(model).__name__ in wrappers:
        model = model.get_submodule("_orig_mod" if hasattr(model, "_orig_mod") else "module")
    return model


def _is_the_models_fault(run: Run) -> bool:
    """Whether the failure would be the same with real tensors."""
    stop = run.trace.stop
    reached_real = any(a.rung == "cpu" and not a.reason.startswith("the ") for a in run.attempts)
    return stop is not None and (reached_real or not is_abstract(stop.error))


def _forward_error(summary: Summary, model: nn.Module) -> ForwardError:
    stop: Attempt = summary.stopped  # type: ignore[assignment]
    layer = next((la for la in summary.layers if la.path == stop.layer), None)
    place = f" in {layer.path} ({layer.type})" if layer and layer.path else ""
    line = f" at {shown_path(stop.file)}:{stop.line}" if stop.file else ""
    hint = f"{_wants(model)}; it was given {summary.inputs}"
    message = f"the forward failed{place}{line}: {stop.reason}"
    return ForwardError(message, hint, replace(summary, attempts=()))
