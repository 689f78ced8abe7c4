"""Find inputs that a model runs with: given, declared, or guessed and tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from ptools import guess as feed
from ptools.errors import UsageError
from ptools.inputs import Inputs, from_value
from ptools.summary.ladder import Run, Subject, climb, is_abstract

NEEDS_A_BATCH = "Expected more than 1 value per channel"  # torch's words
_MOST_GUESSES = 30
_GUESSING_SECONDS = 10.0

Adapt = Callable[[Inputs], Inputs]
Found = tuple[Inputs | None, Run | None, tuple[str, ...]]


def find_run(
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
        if run.trace.stop is None or not run.is_the_models_fault:
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
        candidates = iter((from_value(inputs, "given", "inputs"),))
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
        if NEEDS_A_BATCH in message:
            return adapted(candidate), run, tuple(notes)
        if time.monotonic() > deadline:
            break
    required, _ = feed.forward_arguments(subject.model)
    flags = "".join(f" --input {name}=SHAPE" for name in required) or " --input SHAPE"
    text = f"no input found that the model runs with: {wants(subject.model)}; pass{flags}"
    if message:
        text += f" (the last one tried failed with: {message.strip().splitlines()[0]})"
    notes.insert(0, text)
    return None, None, tuple(notes)


def wants(model: nn.Module) -> str:
    """The forward's arguments in words."""
    required, optional = feed.forward_arguments(model)
    more = "".join(f", {name}=..." for name in optional[: 0 if required else 4])
    return f"the forward takes ({', '.join(required)}{more})".replace("(, ", "(")
