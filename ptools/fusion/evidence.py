"""What both provers and the numbers agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ptools.fusion.callsites import unproven
from ptools.fusion.exported import agreement, exported_trace
from ptools.fusion.numbers import check_numbers
from ptools.fusion.observe import observe
from ptools.fusion.prove import Proof, modules_of, prove
from ptools.fusion.steps import Fold
from ptools.fusion.trace import Trace
from ptools.fusion.trials import Trial


@dataclass(frozen=True)
class Evidence:
    """The changes that are proven; `trace` is that of the first trial."""

    proof: Proof
    trace: Trace
    export_problem: str | None

    @property
    def provers(self) -> tuple[str, ...]:
        """Those whose proof every change rests on."""
        return ("observation",) if self.export_problem else ("observation", "torch.export")


def gather(
    model: nn.Module, tries: Sequence[Trial], assume_traced: bool, without: Mapping[Fold, str]
) -> Evidence:
    """Observe every trial, export the first, and keep what all of them show.

    With `assume_traced` calls in the code that did not run are taken not to exist. Those changes
    that are in `without` are refused for the reason given there, in favour of their parts.
    """
    for trial in tries:
        trial.run(model)  # fills what it caches, after which its forwards are alike
    traces = [observe(model, trial.args, trial.kwargs)[0] for trial in tries]
    proof, *others = [prove(model, trace, assume_traced, without) for trace in traces]
    exported, problem = exported_trace(model, tries[0])
    for fold in list(proof.folds):
        if any(fold not in other.folds for other in others):
            proof.refuse(fold, "another input takes another way")
        elif not assume_traced and (site := unproven(model, modules_of(fold), traces[0])):
            proof.refuse(fold, site)
    if exported is not None:
        agreement(proof, exported)
    check_numbers(model, tries[0], proof)
    return Evidence(proof, traces[0], problem)
