"""The states of all global generators, for checkpoints."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from ptools.errors import PtoolsError

_PARTS = {"python", "numpy", "torch", "cuda", "mps"}
_REFUSALS = (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OverflowError)
Setter = Callable[[], object]


def rng_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, on every device.

    Tensors, numbers and lists only: `torch.load(file, weights_only=True)` reads them back.

        torch.save({"model": model.state_dict(), "rng": ptools.rng_state()}, "last.ckpt")
    """
    import torch

    version, numbers, gauss = random.getstate()
    numpy = sys.modules.get("numpy")
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": _as_tensors(numpy.random.get_state(legacy=False)) if numpy else None,
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
    }
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put all generators back to where `rng_state` found them.

    A state from a machine with more or fewer GPUs is set where it can be, with a warning.

    Raises:
        PtoolsError: it is damaged or something else; then no generator was touched.

        ptools.set_rng_state(torch.load("last.ckpt", weights_only=True)["rng"])
    """
    if not isinstance(state, Mapping) or not _PARTS - {"mps"} <= state.keys() <= _PARTS:
        raise _refused("this is no state of ptools.rng_state()")
    setters: list[Setter] = []
    for part, prepare in _PREPARE.items():
        try:
            setters += prepare(state.get(part))
        except _REFUSALS as error:
            raise _refused(f"the state of {part} is damaged ({error})") from error
    _warn_of_devices(len(state["cuda"]))
    for set_one in setters:
        set_one()


def _refused(what: str) -> PtoolsError:
    return PtoolsError(what, hint="pass on what ptools.rng_state() gave, whole")


def _python(state: Any) -> list[Setter]:
    version, numbers, gauss = state
    whole = version, tuple(numbers), gauss
    random.Random().setstate(whole)  # refuses what is damaged
    if not isinstance(gauss, float | None):
        raise TypeError(f"{gauss!r} is no number")
    return [lambda: random.setstate(whole)]


def _numpy(state: Any) -> list[Setter]:
    if state is None:
        return []
    import numpy

    arrays = _as_arrays(state)
    kind = arrays["bit_generator"]
    trial = numpy.random.RandomState(getattr(numpy.random, kind)())
    trial.set_state(arrays)
    now = numpy.random.get_state(legacy=False)["bit_generator"]
    if kind != now:
        raise ValueError(f"it is of {kind}, and numpy.random uses {now}")
    return [lambda: numpy.random.set_state(arrays)]


def _torch(state: Any) -> list[Setter]:
    import torch

    state = state.cpu()  # torch.load may have moved it to a GPU
    torch.Generator().set_state(state)
    return [lambda: torch.set_rng_state(state)]


def _cuda(states: Any) -> list[Setter]:
    import torch

    found = []
    for index, state in enumerate(states):
        state = state.cpu()
        if state.dtype != torch.uint8 or state.dim() != 1:
            raise TypeError(f"GPU {index}: no bytes")
        if index < torch.cuda.device_count():
            torch.Generator(f"cuda:{index}").set_state(state)
            found.append(_setter_of_gpu(state, index))
    return found


def _setter_of_gpu(state: Any, index: int) -> Setter:
    import torch

    return lambda: torch.cuda.set_rng_state(state, index)


def _mps(state: Any) -> list[Setter]:
    import torch

    if state is None or not torch.backends.mps.is_available():
        return []
    state = state.cpu()
    torch.Generator("mps").set_state(state)
    return [lambda: torch.mps.set_rng_state(state)]


_PREPARE = {"python": _python, "numpy": _numpy, "torch": _torch, "cuda": _cuda, "mps": _mps}


def _warn_of_devices(saved: int) -> None:
    import torch

    here = torch.cuda.device_count()
    if saved == here:
        return
    rest = "those of the others stay as they are" if here > saved else "the rest is left out"
    warnings.warn(
        f"the state is of a machine with {saved} GPUs, and here are {here}: "
        f"generators were set on {min(saved, here)}, {rest}",
        stacklevel=3,
    )


def _as_tensors(value: Any) -> Any:
    """NumPy's arrays as tensors, its numbers as Python's."""
    import torch

    if isinstance(value, dict):
        return {key: _as_tensors(one) for key, one in value.items()}
    if hasattr(value, "ndim"):
        return torch.tensor(value.tolist()) if value.ndim else value.item()
    return value


def _as_arrays(value: Any) -> Any:
    import torch

    if isinstance(value, Mapping):
        return {key: _as_arrays(one) for key, one in value.items()}
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value
