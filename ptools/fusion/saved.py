"""Fused weights in a file, with the recipe that makes a freshly built model fit them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptools.console import counted, escaped
from ptools.errors import PtoolsError, UsageError
from ptools.files import atomic_write, free_space, human_bytes
from ptools.fusion.affine import Kernel
from ptools.fusion.report import FusionReport
from ptools.fusion.steps import Fold, Step, step_of
from ptools.fusion.weights import MISFITS, complaint, read
from ptools.usercode import describe

VERSION = 1
_KEY = "ptools_fuse"
_UNPICKLED = (pickle.PickleError, AttributeError, TypeError)


def save_fused(report: FusionReport, path: str | Path, force: bool = False) -> Path:
    """Write the fused weights and the recipe; `load_fused` reads them.

    The file holds `{"ptools_fuse": recipe, "state_dict": weights}` and no pickled code.

    Raises:
        UsageError: the file exists and `force` is not given, or it cannot be placed there.
        PtoolsError: the model's state holds objects that `weights_only=True` refuses, or the disk
            does not take the file.
    """
    path = Path(path)
    check_name(path)
    recipe = {
        "version": VERSION,
        "model": report.name,
        "steps": [step.to_dict() for step in report.steps],
    }
    content = {_KEY: recipe, "state_dict": report.model.state_dict()}
    with atomic_write(path, force) as temporary:
        try:
            torch.save(content, temporary)
            torch.load(temporary, map_location="meta", weights_only=True, mmap=True)
        except _UNPICKLED as error:
            raise PtoolsError(
                f"the state_dict of {report.name} holds objects that weights_only=True refuses",
                hint="keep what get_extra_state() returns to tensors, numbers and texts",
            ) from error
        except RuntimeError as error:  # all that torch's writer says of a full disk
            raise PtoolsError(
                f"{path} could not be written: {human_bytes(free_space(path))} are free there",
                hint="free some space, or write to another disk with -o",
            ) from error
    return path


def check_name(path: Path) -> None:
    """Refuse a name by which torch would take the file for another kind.

    Raises:
        UsageError: the file is called .safetensors.
    """
    if path.suffix == ".safetensors":
        raise UsageError(
            "a .safetensors file has no place for the recipe that load_fused needs",
            hint=f"did you mean {path.with_suffix('.pt')}?",
        )


def load_fused(model: nn.Module, path: str | Path) -> nn.Module:
    """Make a freshly built model the fused one: no inputs, no tracing, any weights, also meta.

    Args:
        model: built as it was when it was fused. It is changed, and put in eval mode.
        path: what `save_fused` or `ptools fuse -o` wrote.

    Returns:
        The same object.

    Raises:
        UsageError: the file is none of these, or this is no model.
        PtoolsError: the recipe or the weights do not fit this model, which may be changed in part.

        >>> model = ptools.load_fused(Net(), "fused.pt")
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"weights are loaded into a model, and this is of type {type(model).__name__}",
            hint="build it first: ptools.load_fused(Net(), 'fused.pt')",
        )
    recipe, weights = _read(Path(path))
    model.eval()
    on_meta = any(tensor.is_meta for tensor in model.state_dict().values())
    for step in _steps(recipe, path):
        try:
            _check_names(step, model)
            with torch.device("meta") if on_meta else nullcontext():
                step.apply(model, _kernel(step, weights))
        except Exception as error:  # whatever the model's code raises, or a hostile recipe causes
            raise _misfit(recipe, path, model, describe(error)) from error
    try:
        model.load_state_dict(weights, strict=True, assign=on_meta)
    except MISFITS as error:
        raise _misfit(recipe, path, model, complaint(error)) from error
    _check_no_meta(model)
    return model.eval()


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    loaded = read(path)
    parts = (_KEY, "state_dict")
    if not isinstance(loaded, Mapping) or not all(
        isinstance(loaded.get(part), Mapping) for part in parts
    ):
        raise UsageError(
            f"{path} was not written by ptools fuse",
            hint="write such a file with: ptools fuse TARGET -o fused.pt",
        )
    version = loaded[_KEY].get("version")
    if isinstance(version, int) and version > VERSION:
        raise PtoolsError(
            f"{path} was written by a newer ptools (version {version}, this one reads {VERSION})",
            hint="pip install --upgrade ptools",
        )
    return loaded[_KEY], loaded["state_dict"]


def _steps(recipe: Mapping[str, Any], path: str | Path) -> list[Step]:
    try:
        return [step_of(entry) for entry in recipe["steps"]]
    except (KeyError, TypeError, ValueError, AttributeError, PtoolsError) as error:
        raise PtoolsError(
            f"the recipe in {path} cannot be read ({escaped(describe(error))})",
            hint="write the file anew with: ptools fuse TARGET -o fused.pt",
        ) from error


def _check_names(step: Step, model: nn.Module) -> None:
    """A name must be a module's: following it must run none of the model's properties."""
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    for name in _names(step.to_dict()):
        if name not in modules:
            raise LookupError(f"there is no module {name!r}")


def _names(entry: Mapping[str, Any]) -> Iterator[str]:
    yield from (entry[key] for key in ("conv", "module") if key in entry)
    yield from entry.get("inplace", ())
    for name, rest in entry.get("replaced", {}).items():
        yield name
        yield from (f"{name}.{child}" for child in rest if child != "0")


def _kernel(step: Step, weights: Mapping[str, Any]) -> Kernel | None:
    """The stored weights of a convolution, where it still has the name that it had."""
    if not isinstance(step, Fold) or f"{step.conv}.bias" not in weights:
        return None
    return weights[f"{step.conv}.weight"], weights[f"{step.conv}.bias"]


def _check_no_meta(model: nn.Module) -> None:
    """Buffers that no state_dict holds are there only if they were built for real."""
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if empty:
        raise PtoolsError(
            f"the file does not hold {escaped(empty[0])}, which the model has on device meta",
            hint=f"build the model on the CPU: {counted(len(empty), 'buffer')} are not saved",
        )


def _misfit(
    recipe: Mapping[str, Any], path: str | Path, model: nn.Module, detail: str
) -> PtoolsError:
    made_for, this = escaped(str(recipe.get("model"))), type(model).__name__
    return PtoolsError(
        f"the recipe in {path}, made for {made_for}, does not fit this {this}: {escaped(detail)}",
        hint="build the model with the arguments that it had when it was fused",
    )
