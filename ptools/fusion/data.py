"""Batches of the user's own data as trials, whatever form they have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader, Dataset

from ptools.errors import UsageError
from ptools.fusion.precision import dtype_of
from ptools.fusion.trials import Trial
from ptools.guess import forward_arguments
from ptools.inputs import from_value
from ptools.search import wants
from ptools.usercode import describe

_BATCH = 32  # of a Dataset


def batches_of(loader: Any, model: nn.Module, limit: int = 8) -> list[Trial]:
    """The first batches of a DataLoader, a Dataset or any iterable, in the form the model takes.

    A batch may be a tensor, a sequence of which the first items are the inputs (as in (x, y)), or
    a mapping with the names of the forward's arguments. Tensors are copied to the model's device
    and, where they are floating-point, to its dtype. The model is run once with each.

    Raises:
        UsageError: there is no batch, or the forward takes none of its forms.
    """
    form: str | None = None
    found: list[Trial] = []
    for index, batch in enumerate(_batches(loader, limit)):
        label = f"batch {index + 1} of the data"
        tries = {name: replace(trial, label=label) for name, trial in _forms(batch, model)}
        if form is None:
            form = _form_that_runs(tries, batch, model)
        elif form not in tries or (problem := _problem(tries[form], model)):
            reason = problem if form in tries else "it has another form than the first"
            raise UsageError(f"the forward fails with {label}: {reason}")
        found.append(tries[form])
    if not found:
        raise UsageError("the data holds no batch", hint="pass a DataLoader or Dataset with items")
    return found


def _batches(loader: Any, limit: int) -> Iterator[Any]:
    if isinstance(loader, torch.Tensor):
        loader = loader.split(_BATCH)
    elif isinstance(loader, Dataset):
        loader = DataLoader(loader, batch_size=_BATCH)
    if not isinstance(loader, Iterable):
        raise UsageError(
            f"the data is of type {type(loader).__name__} and gives no batches",
            hint="pass a DataLoader or a Dataset",
        )
    try:
        yield from islice(loader, limit)
    except Exception as error:
        raise UsageError(f"the data gave no batch: {describe(error)}") from error


def _forms(batch: Any, model: nn.Module) -> Iterator[tuple[str, Trial]]:
    """The ways to hand a batch over, likeliest first, each with its name."""
    if isinstance(batch, Mapping):
        required, optional = forward_arguments(model)
        named = {name: batch[name] for name in (*required, *optional) if name in batch}
        if named:
            yield "by name", _trial(model, (), named)
        yield "as one mapping", _trial(model, (dict(batch),), {})
        for key in batch:
            yield f"{key!r} alone", _trial(model, (batch[key],), {})
    elif isinstance(batch, tuple | list) and batch:
        if isinstance(batch[0], Mapping | tuple | list):
            for name, trial in _forms(batch[0], model):
                yield f"the first item, {name}", trial
        for length in range(1, len(batch) + 1):
            yield f"the first {length}", _trial(model, tuple(batch[:length]), {})
        yield "as one sequence", _trial(model, (batch,), {})
    else:
        yield "as it is", _trial(model, (batch,), {})


def _trial(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Trial:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    floating = dtype_of(model)

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        dtype = floating if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(device, dtype, copy=True)

    args, kwargs = tree_map_only(torch.Tensor, placed, (args, kwargs))
    return Trial(args, kwargs, label="")


def _form_that_runs(tries: Mapping[str, Trial], batch: Any, model: nn.Module) -> str:
    problems: dict[str, str] = {}
    for form, trial in tries.items():
        problem = _problem(trial, model)
        if problem is None:
            return form
        problems[form] = problem
    tried = "; ".join(f"{form}: {problem}" for form, problem in problems.items())
    raise UsageError(
        f"the model takes no batch of the data: {wants(model)}, "
        f"a batch is ({from_value(batch, 'given', 'data')})",
        hint=f"let the loader give what the forward takes; tried {tried}",
    )


def _problem(trial: Trial, model: nn.Module) -> str | None:
    try:
        trial.run(model)
    except Exception as error:  # whatever the user's forward raises
        return describe(error)
    return None
