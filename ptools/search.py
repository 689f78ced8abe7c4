"""Find inputs that a model runs with: given, declared, or guessed and tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import nn

from ptools import guess as feed
from ptools.errors import UsageError
from ptools.inputs import Inputs, from_value

NEEDS_A_BATCH = "Expected more than 1 value per channel"  # torch's words
_MOST_GUESSES = 30
_GUESSING_SECONDS = 10.0


class Attempt(Protocol):
    """One run of a forward."""

    @property
    def error(self) -> Exception | None:
        """What it raised."""

    @property
    def other_inputs_may_do(self) -> bool:
        """Whether the error can be the input's fault: False where it is the way of running."""


Run = TypeVar("Run", bound=Attempt)
Adapt = Callable[[Inputs], Inputs]


@dataclass(frozen=True)
class Found(Generic[Run]):
    """The inputs that the model runs with, the run, and what there is to say about them."""

    inputs: Inputs | None
    run: Run | None
    notes: tuple[str, ...] = ()


def find_run(
    model: nn.Module,
    inputs: Any,
    namespace: Mapping[str, Any],
    adapted: Adapt,
    strict: bool,
    attempt: Callable[[Inputs, bool], Run],
) -> Found[Run]:
    """The first inputs with which `attempt(inputs, patient)` succeeds.

    `inputs` are the user's, or None; `namespace` is where the declared are looked for; with
    `strict` none are guessed. `patient` is False for guesses, of which many fail.

    Raises:
        UsageError: `strict`, and none are given or declared.
    """
    if inputs is not None:
        return _first_that_runs(model, inputs, adapted, attempt)
    notes: list[str] = []
    declared = feed.declared(model, namespace)
    if declared is not None:
        declared = adapted(declared)
        run = attempt(declared, True)
        if run.error is None or not run.other_inputs_may_do:
            return Found(declared, run)
        notes.append(f"{declared.origin} gives {declared}, and the forward fails with it")
    if strict:
        raise UsageError(
            "the model declares no input, and --strict refuses guesses",
            hint="pass --input, for example --input 3x224x224",
        )
    return _guess(model, adapted, notes, attempt)


def _first_that_runs(
    model: nn.Module, inputs: Any, adapted: Adapt, attempt: Callable[[Inputs, bool], Run]
) -> Found[Run]:
    """Texts of --input may lack the batch dimension; values are taken as they are."""
    candidates: Iterator[Inputs]
    if isinstance(inputs, Inputs) and inputs.origin == "--input":
        candidates = feed.given(inputs, model)
    else:
        candidates = iter((from_value(inputs, "given", "inputs"),))
    first: Found[Run] | None = None
    for candidate in candidates:
        candidate = adapted(candidate)
        run = attempt(candidate, True)
        if run.error is None:
            return Found(candidate, run)
        first = first or Found(candidate, run)
    assert first is not None
    return first


def _guess(
    model: nn.Module, adapted: Adapt, notes: list[str], attempt: Callable[[Inputs, bool], Run]
) -> Found[Run]:
    guesses = feed.guesses(model)
    message: str | None = None
    deadline = time.monotonic() + _GUESSING_SECONDS
    for _ in range(_MOST_GUESSES):
        try:
            candidate = adapted(guesses.send(message))
        except StopIteration:
            break
        run = attempt(candidate, False)
        if run.error is None or not run.other_inputs_may_do:
            return Found(candidate, run, tuple(notes))
        message = str(run.error)
        if NEEDS_A_BATCH in message:
            return Found(candidate, run, tuple(notes))
        if time.monotonic() > deadline:
            break
    required, _ = feed.forward_arguments(model)
    flags = "".join(f" --input {name}=SHAPE" for name in required) or " --input SHAPE"
    text = f"no input found that the model runs with: {wants(model)}; pass{flags}"
    if message:
        text += f" (the last one tried failed with: {message.strip().splitlines()[0]})"
    return Found(None, None, (text, *notes))


def wants(model: nn.Module) -> str:
    """The forward's arguments in words."""
    required, optional = feed.forward_arguments(model)
    more = "".join(f", {name}=..." for name in optional[: 0 if required else 4])
    return f"the forward takes ({', '.join(required)}{more})".replace("(, ", "(")
