"""How many batch norms of third-party models fold, and whether the output stays the same.

Run `python tests/benchmarks/fuse_zoo.py`, or with the names of single models. It takes those of
torchvision, timm, pytorchcv, monai, transformers, vit-pytorch and segmentation-models-pytorch that
are installed. Beside ptools: `torch.fx.experimental.optimization.fuse`, mmengine's rule (a batch
norm that is defined after a Conv2d folds), and timm's `reparameterize_model`. Batch norms and
convolutions are counted as operations that a forward runs, since a module that is gone may have
been inlined. The error is the largest difference of an output over that output's standard
deviation, on inputs that no tool has seen; above 1e-3 the output is called wrong. Own rounding is
the same of the model itself against its float64 copy. All models have random weights and scales,
and statistics of real activations. Each has a fork of its own, with one thread.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import torch
from fuse_zoo_models import ZOO, Entry
from fuse_zoo_tools import PEERS, error, ran
from harness import import_torchvision, show, show_versions
from torch import nn

from ptools.fusion import fuse

WRONG = 1e-3
PACKAGES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "pytorchcv": "pytorchcv.model_provider",
    "monai": "monai.networks.nets",
    "transformers": "transformers",
    "vit-pytorch": "vit_pytorch",
    "smp": "segmentation_models_pytorch",
    "torch": "torch._dynamo",  # which torch.export imports: once here, not in every fork
}


@dataclass
class Outcome:
    """What one tool made of a model: batch norms and convolutions that still run, and its error."""

    norms: int = 0
    convolutions: int = 0
    error: float = 0.0
    problem: str | None = None

    @property
    def is_wrong(self) -> bool:
        return self.problem is None and not self.error <= WRONG


@dataclass
class Row:
    """A model: the batch norms that it has, what it runs, and what the tools made of it."""

    label: str
    modules: int = 0
    norms: int = 0
    convolutions: int = 0
    rounding: float = 0.0  # the model's own error, against itself in float64
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    problem: str | None = None


def outcome(model: nn.Module, made: nn.Module, inputs: torch.Tensor) -> Outcome:
    counted = ran(made, inputs)
    return Outcome(len(counted.norms), counted.convolutions, error(model, made, inputs))


def by_ptools(model: nn.Module, entry: Entry, row: Row, unseen: torch.Tensor) -> Outcome:
    start = time.perf_counter()
    report = fuse(model, (entry.inputs(),), latency=False)
    row.seconds = time.perf_counter() - start
    row.modules = report.norms
    row.reasons = Counter(left.reason or "no reason given" for left in report.left)
    return outcome(model, report.model, unseen)


def row_of(number: int) -> Row:
    """Everything about one model; runs in a process that ends after it."""
    entry = ZOO[number]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    row = Row(entry.label)
    model, unseen = entry.made(), entry.inputs(seed=2)
    counted = ran(model, unseen)
    row.norms, row.convolutions = len(counted.norms), counted.convolutions
    row.rounding = error(copy.deepcopy(model).double(), model, unseen.double(), unseen)
    tools = {"ptools": lambda: by_ptools(model, entry, row, unseen)} | {
        name: lambda peer=peer: outcome(model, peer(model), unseen) for name, peer in PEERS.items()
    }
    for name, tool in tools.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                row.outcomes[name] = tool()
        except Exception as problem:
            row.outcomes[name] = Outcome(problem=f"{type(problem).__name__}: {problem}")
    return row


def forked(number: int) -> Row:
    label = ZOO[number].label
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        try:
            return pool.submit(row_of, number).result()
        except BrokenProcessPool:
            return Row(label, problem="the process died")
        except Exception as problem:
            return Row(label, problem=f"{type(problem).__name__}: {problem}")


def cells(row: Row) -> list[str]:
    """Batch norms that a tool folded and its error, tool by tool."""
    if row.problem:
        return [row.label, row.problem.splitlines()[0]]
    found = [row.label, str(row.norms), f"{row.rounding:.0e}"]
    for made in row.outcomes.values():
        if made.problem:
            found.append(made.problem.partition(":")[0])
        else:
            found.append(f"{row.norms - made.norms} {made.error:.0e}{' x' * made.is_wrong}")
    counts = (made.convolutions or "-" for made in row.outcomes.values())
    convolutions = " ".join(map(str, (row.convolutions, *counts)))
    return [*found, convolutions, f"{row.seconds:.1f}"]


def totals(rows: Sequence[Row]) -> list[list[str]]:
    found = []
    for tool in ("ptools", *PEERS):
        made = [(row, row.outcomes[tool]) for row in rows if tool in row.outcomes]
        ran_through = [(row, each) for row, each in made if each.problem is None]
        right = [(row, each) for row, each in ran_through if not each.is_wrong]
        folded = sum(row.norms - each.norms for row, each in right)
        largest = max((each.error for _, each in right), default=0.0)
        counts = (f"{len(ran_through)} of {len(rows)}", str(len(ran_through) - len(right)))
        found.append([tool, *counts, f"{folded} of {sum(r.norms for r in rows)}", f"{largest:.0e}"])
    return found


def main(names: Sequence[str]) -> None:
    import_torchvision()
    missing = set()
    for library, package in PACKAGES.items():
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            missing.add(library)
    rows = []
    for number, entry in enumerate(ZOO):
        wanted = not names or not {entry.name, entry.label}.isdisjoint(names)
        if wanted and entry.library not in missing:
            rows.append(forked(number))
            print(*cells(rows[-1]), sep="  ", file=sys.stderr, flush=True)
    tools = ("ptools", *PEERS)
    show(
        "Batch norms folded and error; x: a wrong output",
        [
            "model",
            "BNs run",
            "own rounding",
            *tools,
            f"convolutions: before, {', '.join(tools)}",
            "ptools s",
        ],
        [cells(row) for row in rows],
    )
    left = [(row.label, str(n), reason) for row in rows for reason, n in row.reasons.items()]
    show("Batch norms that ptools leaves", ["model", "BNs", "reason"], left)
    columns = ["tool", "models that run", "wrong outputs", "BNs folded, output right", "error"]
    show("All models", columns, totals(rows))
    show_versions(
        *(
            name if name != "smp" else "segmentation-models-pytorch"
            for name in PACKAGES
            if name != "torch"
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
