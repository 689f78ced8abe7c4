"""`fuse`: find what can be one convolution, prove it, make it so in a copy, verify the copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from ptools.errors import UsageError
from ptools.fusion import measure
from ptools.fusion.affine import Affine, Kernel
from ptools.fusion.data import batches_of
from ptools.fusion.evidence import Evidence, gather
from ptools.fusion.inplace import inplace_activations
from ptools.fusion.int8 import measure_int8
from ptools.fusion.observe import observe
from ptools.fusion.options import DTYPES, Cast, ChannelsLast, Option
from ptools.fusion.precision import adapted
from ptools.fusion.prepare import check, is_norm
from ptools.fusion.prove import Proof
from ptools.fusion.reasons import left
from ptools.fusion.report import FusionReport
from ptools.fusion.settle import Bench, Change
from ptools.fusion.steps import Fold, own_steps
from ptools.fusion.trials import Trial, find_inputs, trials
from ptools.fusion.variants import measure_variants
from ptools.inputs import Inputs
from ptools.replica import cloned, replica, unwrapped
from ptools.rng import preserve_rng


def fuse(
    model: nn.Module,
    inputs: Any = None,
    *,
    data: Any = None,
    channels_last: bool = False,
    inplace_relu: bool = False,
    dtype: torch.dtype | None = None,
    int8: bool = False,
    inplace: bool = False,
    tolerance: float | None = None,
    assume_traced: bool = False,
    strict: bool = False,
    latency: bool = True,
    namespace: Mapping[str, Any] | None = None,
) -> FusionReport:
    """Fold batch norms and parallel branches into convolutions, and prove that nothing changed.

    What may be folded is decided by dataflow: real forwards are observed, operation by operation,
    and `torch.export`'s graph must agree where the model can be exported. Weights are folded in
    float64. The copy in `report.model` keeps the model's class; convolutions get other weights and
    a bias, and an `nn.Identity` stands in the place of each batch norm.

    Args:
        model: in eval mode. It is left as it was unless `inplace`.
        inputs: tensors as the forward takes them (a tuple is positional, a dict named), or None to
            use what the model declares, else to guess; see `report.inputs`.
        data: a DataLoader or Dataset whose first batches are compared as well; without `inputs`
            the first of them is the input.
        channels_last, inplace_relu, dtype: further changes, each measured (`report.variants`) and
            left out if its error is too large. `dtype` is bfloat16 or float16.
        int8: measure 8-bit integers too, calibrated with `data`; `report.model` stays as it is.
        tolerance: the largest difference allowed, as a share of the output's standard deviation:
            by default 1e-4, or what 16 bits need.
        assume_traced: fold also where the code has calls that these inputs did not reach.
        strict: refuse to guess inputs.
        latency: measure the seconds of both models, which takes a few.
        namespace: where `example_inputs` is looked for.

    Raises:
        UsageError: the model is in training mode, TorchScript, or no inputs for it are known.
        PtoolsError: its forward fails.

        >>> report = ptools.fuse(model.eval(), torch.randn(1, 3, 224, 224))
        >>> report.folded, report.difference.relative
        (53, 1.2e-06)
    """
    _check_wishes(dtype, tolerance)
    model = unwrapped(model)
    warnings = check(model)
    with preserve_rng():
        reference = replica(model, cloned)
        batches = [] if data is None else batches_of(data, reference)
        if inputs is None and batches:
            inputs = batches[0].inputs()
        chosen, notes = find_inputs(reference, inputs, namespace or {}, strict)
        probes = trials(reference, chosen)
        bench = Bench(model, [*probes, *batches], tolerance)
        own = bench.sound([Change(step) for step in own_steps(model)])
        evidence, folds = _proven_folds(bench, own, [*probes, *batches[:1]], assume_traced)
        changes = own + folds
        report = _report(bench, chosen, evidence, changes, latency)
        report = replace(report, warnings=(*warnings, *notes))
        eight = [measure_int8(reference, report.model, batches, latency)] if int8 else []
        options: list[Option] = [ChannelsLast()] if channels_last else []
        if inplace_relu:
            options.append(inplace_activations(replica(report.model, cloned), probes))
        options += [Cast(dtype)] if dtype is not None else []
        report = _with_options(report, options, bench, latency)
        report = replace(report, variants=(*report.variants, *eight))
        return _applied_to(model, report, changes) if inplace else report


def _check_wishes(dtype: torch.dtype | None, tolerance: float | None) -> None:
    if dtype is not None and dtype not in DTYPES.values():
        raise UsageError(f"dtype={dtype} is not for this", hint="torch.bfloat16 or torch.float16")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise UsageError(f"a tolerance of {tolerance} is not above 0", hint="as 1e-4")


def _proven_folds(
    bench: Bench, own: list[Change], tries: Sequence[Trial], assume_traced: bool
) -> tuple[Evidence, list[Change]]:
    """Those that are proven and hold; of a large one that does not, the parts that do."""
    without: dict[Fold, str] = {}
    while True:
        evidence = gather(bench.changed(own), tries, assume_traced, without)
        kept = _sound_folds(bench, own, evidence.proof)
        if not evidence.proof.splittable:
            return evidence, kept
        without |= evidence.proof.splittable


def _sound_folds(bench: Bench, own: list[Change], proof: Proof) -> list[Change]:
    """The proven folds with which the whole model gives the same output; the others are refused."""
    found = {fold: Change(fold, _kernel_of(regions[0])) for fold, regions in proof.folds.items()}
    kept = bench.sound(list(found.values()), own)
    for fold, change in found.items():
        if change not in kept:
            proof.refuse(fold, "the model's output changes, or its code fails")
    return kept


def _kernel_of(region: Affine) -> Callable[[], Kernel]:
    """Computed in float64, and kept in the model's dtype for every copy that is tried."""

    @cache
    def kernel() -> Kernel:
        weight, bias = region.kernel()
        return weight.to(region.value.dtype), bias.to(region.value.dtype)

    return kernel


def _report(
    bench: Bench, chosen: Inputs, evidence: Evidence, changes: Sequence[Change], timed: bool
) -> FusionReport:
    """What the changes made of the model, without further options."""
    fused = bench.changed(changes)
    return FusionReport(
        name=type(bench.model).__name__,
        model=bench.changed(changes),  # one that has not run
        example=bench.tries[0],
        inputs=str(chosen),
        input_source=chosen.source,
        trials=tuple(trial.label for trial in bench.tries),
        provers=evidence.provers,
        export_problem=evidence.export_problem,
        steps=tuple(change.step for change in changes),
        norms=sum(map(is_norm, bench.model.modules())),
        left=left(bench.model, evidence.trace, evidence.proof, fused),
        **_costs(replica(bench.model, cloned), fused, bench.tries[0], timed),
        difference=bench.difference(fused),
        tolerance=bench.tolerance,
        unfused=bench.unfused,
    )


def _costs(before: nn.Module, after: nn.Module, trial: Trial, timed: bool) -> dict[str, Any]:
    """Fields of the report: operations, parameters, multiply-accumulates, seconds."""
    models = (before, after)
    traces = [observe(model, trial.args, trial.kwargs)[0] for model in models]
    runs = (lambda: trial.run(before)), (lambda: trial.run(after))
    return {
        "operations": tuple(map(measure.operations, traces)),
        "parameters": tuple(map(measure.parameters, models)),
        "macs": tuple(measure.macs(model, trial) for model in models),
        "latency": measure.latency(*runs) if timed else None,
    }


def _with_options(
    report: FusionReport, options: Sequence[Option], bench: Bench, timed: bool
) -> FusionReport:
    """The report of the model with those options that hold."""
    if not options:
        return report
    models = bench.model, report.model
    variants = measure_variants(*models, options, bench.tries, timed, bench.wanted)
    held = [option for option, one in zip(options, variants, strict=True) if not one.problem]
    model = replica(report.model, cloned)
    for option in held:
        option.apply(model)
    return replace(
        report,
        model=model,
        example=adapted(report.example, *held),
        steps=(*report.steps, *held),
        variants=variants,
    )


def _applied_to(model: nn.Module, report: FusionReport, changes: Sequence[Change]) -> FusionReport:
    """The report of the user's own model, changed as its copy was."""
    kernels = {change.step: change for change in changes}
    for step in report.steps:
        kernels.get(step, Change(step)).apply(model)
    return replace(report, model=model)
