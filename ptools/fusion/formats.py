"""Write a fused model for other programs: torch.export's file, or ONNX; read back and compared."""

from __future__ import annotations

import importlib.util
import io
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ptools.errors import PtoolsError
from ptools.files import atomic_write
from ptools.fusion.graph import simplify
from ptools.fusion.precision import dtype_of, tolerance_for
from ptools.fusion.quiet import silence
from ptools.fusion.trials import Trial
from ptools.fusion.verify import difference, worst
from ptools.replica import cloned, replica
from ptools.usercode import describe

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_ONNX_LIMIT = 2**31  # bytes of one protocol buffer


def save_pt2(
    model: nn.Module, trial: Trial, path: str | os.PathLike[str], force: bool = False
) -> str:
    """Write what torch.export makes of a model; any batch size where the model takes it.

    Returns:
        One line that says what was written.

    Raises:
        PtoolsError: torch.export can't, or the program does not say the same as the model.
        UsageError: the file exists and `force` is not given.
    """
    from torch import export

    def save(program: ExportedProgram, file: Path) -> nn.Module:
        memory = io.BytesIO()  # torch's own writer ends the process when the disk is full
        export.save(program, memory)
        file.write_bytes(memory.getbuffer())
        return export.load(file).module()

    batch = _write(model, trial, Path(path), force, save, "torch.export")
    return f"{path}: {batch}, loads with torch.export.load"


def save_onnx(
    model: nn.Module, trial: Trial, path: str | os.PathLike[str], force: bool = False
) -> str:
    """Write a model as ONNX; any batch size where the model takes it.

    Returns:
        One line that says what was written, and whether onnxruntime ran it.

    Raises:
        PtoolsError: onnx and onnxscript are not installed, the exporter can't, or onnxruntime does
            not say the same as the model.
        UsageError: the file exists and `force` is not given.
    """
    check_onnx()
    if sum(tensor.nbytes for tensor in model.state_dict().values()) >= _ONNX_LIMIT:
        raise PtoolsError("an ONNX file holds at most 2 GiB of weights", hint="write --pt2 instead")
    runs = importlib.util.find_spec("onnxruntime") is not None

    def save(program: ExportedProgram, file: Path) -> nn.Module:
        torch.onnx.export(program, f=file, dynamo=True, external_data=False, verbose=False)
        return _OnnxModel(file) if runs else program.module()

    batch = _write(model, trial, Path(path), force, save, "the ONNX exporter")
    checked = "agrees in onnxruntime" if runs else "not verified: onnxruntime is not installed"
    return f"{path}: {batch}, {checked}"


def check_onnx() -> None:
    """Raise PtoolsError if what ONNX files are written with is not installed."""
    missing = [name for name in ("onnx", "onnxscript") if not importlib.util.find_spec(name)]
    if missing:
        raise PtoolsError(
            f"--onnx needs {' and '.join(missing)}", hint="pip install 'ptools[onnx]'"
        )


def _write(
    model: nn.Module,
    trial: Trial,
    path: Path,
    force: bool,
    save: Callable[[ExportedProgram, Path], nn.Module],
    who: str,
) -> str:
    """Write the best program that says what the model says; what its batch is."""
    tolerance, problem = tolerance_for(dtype_of(model)), ""
    with atomic_write(path, force) as temporary:
        batches = (True, False) if _batch(trial) else (False,)
        for dynamic, merging in itertools.product(batches, (True, False)):
            try:
                with silence(), torch.no_grad():
                    example, others = _examples(trial, dynamic)
                    program = _program(replica(model, cloned), example, dynamic, merging)
                    error = _error(model, save(program, temporary), (example, *others))
            except OSError:  # the disk
                raise
            except Exception as failure:
                problem = describe(_cause(failure))
                continue
            if error <= tolerance:
                return "batch is dynamic" if dynamic else "shapes are fixed"
            problem = f"its output is off by {error:.2g} of the output's spread"
        raise PtoolsError(
            f"{who} can't write this model: {problem}", hint="save the weights instead: -o model.pt"
        )


def _examples(trial: Trial, dynamic: bool) -> tuple[Trial, tuple[Trial, ...]]:
    """What to export with, and what else the program must say the same of."""
    if not dynamic:
        return trial, (_mirrored(trial),)
    size = max(2, _batch(trial))  # torch.export takes 1 for a constant
    example, mirrored = _resized(trial, size), _mirrored(trial)
    return example, (_resized(mirrored, 1), _resized(mirrored, size + 1))


def _program(model: nn.Module, trial: Trial, dynamic: bool, merging: bool) -> ExportedProgram:
    from torch import export

    def exported(module: nn.Module) -> ExportedProgram:
        shapes = export.ShapesCollection()
        if dynamic:
            size, batch = _batch(trial), export.Dim("batch")
            for tensor in _tensors((trial.args, trial.kwargs)):
                if tensor.dim() and len(tensor) == size:
                    shapes[tensor] = {0: batch}
        specified = shapes.dynamic_shapes(module, trial.args, trial.kwargs) if dynamic else None
        return export.export(
            module, trial.args, trial.kwargs, dynamic_shapes=specified, strict=False
        )

    program = exported(model)
    if merging:
        graph = program.run_decompositions({}).module()
        return exported(graph) if simplify(graph) else program
    return program


def _error(model: nn.Module, written: nn.Module, trials: tuple[Trial, ...]) -> float:
    copy = replica(model, cloned)
    return worst(difference(trial.run(copy), trial.run(written)) for trial in trials).relative


def _cause(error: BaseException) -> BaseException:
    """What an exporter's error goes back to."""
    return error if error.__cause__ is None else _cause(error.__cause__)


class _OnnxModel(nn.Module):
    """An ONNX file as onnxruntime runs it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        import onnxruntime

        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def forward(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        arrays = [tensor.numpy(force=True) for tensor in _tensors((args, kwargs))]
        names = (each.name for each in self.session.get_inputs())
        outputs = self.session.run(None, dict(zip(names, arrays, strict=True)))
        return [torch.from_numpy(output) for output in outputs]


def _tensors(arguments: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]


def _batch(trial: Trial) -> int:
    """The first size of the first tensor that has one."""
    tensors = _tensors((trial.args, trial.kwargs))
    return next((len(tensor) for tensor in tensors if tensor.dim()), 0)


def _resized(trial: Trial, size: int) -> Trial:
    """The trial with its rows repeated, or cut."""
    before = _batch(trial)

    def resize(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.dim() or len(tensor) != before:
            return tensor
        return tensor[torch.arange(size, device=tensor.device) % before]

    return _mapped(trial, resize)


def _mirrored(trial: Trial) -> Trial:
    """Other numbers than those exported with, which may have become constants."""

    def mirror(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.flip(-1) if tensor.dim() and tensor.is_floating_point() else tensor

    return _mapped(trial, mirror)


def _mapped(trial: Trial, change: Callable[[torch.Tensor], torch.Tensor]) -> Trial:
    args, kwargs = tree_map_only(torch.Tensor, change, (trial.args, trial.kwargs))
    return replace(trial, args=args, kwargs=kwargs)
