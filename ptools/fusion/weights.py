"""Read weights from a file without executing its pickle, and load them into a model strictly."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import nn

from ptools.console import escaped
from ptools.errors import PtoolsError, UsageError

MISFITS = (RuntimeError, TypeError, AttributeError)  # what load_state_dict raises
_NESTED = ("state_dict", "model_state_dict", "model")
_UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError)


def load_weights(model: nn.Module, path: Path, target: str) -> None:
    """Give a model the weights in a file: all of its names, and no others.

    Args:
        model: changed.
        path: a file of torch, or safetensors; a `state_dict` or `model` in it is taken.
        target: what the user calls the model, quoted for a shell.

    Raises:
        UsageError: names or shapes differ, or the file cannot be read.
        PtoolsError: it could only be read by executing its pickle.
    """
    command = f"ptools fix-ckpt {quote(str(path))} --model {target}"
    fixed = f"make them fit with: {command} -o fixed.pt"
    other = f"is the model built as it was trained? see what differs: {command} --dry-run"
    weights = _state_dict(read(path), path, fixed)
    try:
        result = model.load_state_dict(weights, strict=False)
    except MISFITS as error:
        detail = escaped(complaint(error))
        raise UsageError(f"{path} does not fit {target}: {detail}", hint=other) from error
    wrong = ", ".join(_wrong(result.missing_keys, result.unexpected_keys))
    if wrong:
        hint = fixed if result.unexpected_keys else other
        raise UsageError(f"{path} does not fit {target}: {wrong}", hint=hint)


def read(path: Path) -> Any:
    """What a file of weights holds, on the CPU.

    Raises:
        UsageError: there is no such file, or it is none that torch can read.
        PtoolsError: it could only be read by executing its pickle.
    """
    name = quote(str(path))
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder",
            hint=f"name a file in it, or write one: ptools fix-ckpt {name} -o weights.pt",
        )
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is warned of, then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PtoolsError(
            f"{path} could only be read by executing the pickle in it, and ptools never does",
            hint=f"make it a file of weights alone: ptools fix-ckpt {name} --weights-only",
        ) from error
    except _UNREADABLE as error:
        if "TorchScript" in str(error):
            raise UsageError(
                f"{path} is TorchScript, not a file of weights",
                hint=f"take its weights out: ptools fix-ckpt {name} -o weights.pt",
            ) from error
        raise UsageError(
            f"{path} is not a checkpoint that torch can read",
            hint=f"see what it is: ptools fix-ckpt info {name}",
        ) from error


def complaint(error: Exception) -> str:
    """The first one of `load_state_dict`, which stands below its title."""
    lines = str(error).strip().splitlines()
    return (lines[1:] or lines or [type(error).__name__])[0].strip()


def _state_dict(loaded: Any, path: Path, fixed: str) -> dict[str, Any]:
    """The weights in what a training saved."""
    if not isinstance(loaded, Mapping):
        raise UsageError(f"{path} holds a {type(loaded).__name__}, not a state_dict", hint=fixed)
    if "ptools_fuse" in loaded:
        raise UsageError(
            f"the weights in {path} are fused already", hint=f"ptools.load_fused(model, '{path}')"
        )
    nested = (loaded[key] for key in _NESTED if isinstance(loaded.get(key), Mapping))
    return dict(next(nested, loaded))


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise PtoolsError(
            "reading .safetensors needs safetensors", hint="pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except (SafetensorError, *_UNREADABLE) as error:
        raise UsageError(f"{path} is not a safetensors file") from error


def _wrong(missing: list[str], unexpected: list[str]) -> Iterator[str]:
    for names, what in ((missing, "missing"), (unexpected, "unexpected")):
        if names:
            count = f"{len(names)} names are" if len(names) > 1 else "1 name is"
            first = "the first is " if len(names) > 1 else ""
            yield f"{count} {what} ({first}{escaped(names[0])})"
