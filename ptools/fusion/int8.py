"""A fused model with weights and activations of 8 bits: torchao's PT2E, compiled by Inductor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ptools.errors import PtoolsError, UsageError
from ptools.fusion import measure
from ptools.fusion.quiet import quiet_logs
from ptools.fusion.report import Variant
from ptools.fusion.trials import Trial
from ptools.fusion.verify import difference, worst
from ptools.replica import cloned, replica
from ptools.usercode import describe

TOLERANCE = 0.5  # the largest difference, as a share of the output's spread
_NAME = "int8, compiled"


def measure_int8(
    original: nn.Module, fused: nn.Module, data: Sequence[Trial], timed: bool
) -> Variant:
    """Speed and error of the fused model in 8 bits, calibrated with batches of the user's data.

    Batches of another shape than the first are left out: the compiled program takes one shape.

    Raises:
        UsageError: there is no data; noise would set the wrong ranges.
        PtoolsError: torchao is not installed.
    """
    if not data:
        raise UsageError("int8 is calibrated with real data", hint="pass --data loader.py")
    _check_torchao()
    batches = [trial for trial in data if _shapes(trial) == _shapes(data[0])]
    try:
        with quiet_logs():
            model = _compiled(quantised(fused, batches), batches[0])
            pairs = [(trial.run(original), trial.run(model)) for trial in batches]
    except Exception as error:  # a layer that torchao or Inductor can't do, or no C++ compiler
        return Variant(_NAME, problem=describe(error))
    distance = worst(difference(expected, got) for expected, got in pairs)
    variant = Variant(_NAME, difference=distance)
    if not distance.relative <= TOLERANCE:
        problem = f"its error, {distance.relative:.2g} of the spread, is above {TOLERANCE:g}"
        variant = replace(variant, problem=problem)
    if not timed:
        return variant
    first = batches[0]
    runs = (lambda: first.run(original)), (lambda: first.run(model))
    return replace(variant, latency=measure.latency(*runs))


def quantised(model: nn.Module, batches: Sequence[Trial]) -> nn.Module:
    """torch.export's graph of a copy of the model, quantised with the ranges of the batches."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    first = batches[0]
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        program = torch.export.export(replica(model, cloned), first.args, first.kwargs)
        observed = prepare_pt2e(program.module(), quantizer)
        for trial in batches:
            trial.run(observed)
        result: nn.Module = convert_pt2e(observed)
    return result


def _compiled(model: nn.Module, trial: Trial) -> Any:
    """By Inductor, which packs weights of 8 bits only where it may freeze them."""
    from torch._inductor import config

    compiled: Any = torch.compile(model)
    patched: Any = config
    with patched.patch(freezing=True):
        trial.run(compiled)
    return compiled


def _check_torchao() -> None:
    try:
        import torchao  # noqa: F401
    except ImportError:
        raise PtoolsError(
            "int8 needs torchao, which is not installed", hint="pip install 'ptools[int8]'"
        ) from None


def _shapes(trial: Trial) -> list[torch.Size]:
    leaves = tree_leaves((trial.args, trial.kwargs))
    return [leaf.shape for leaf in leaves if isinstance(leaf, torch.Tensor)]
