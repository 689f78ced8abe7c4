"""Who counts a model's multiply-accumulates (MACs) right: ptools and the tools beside it.

Run `python tests/benchmarks/summary_macs.py`; torchvision and transformers must be installed, and
of torchinfo, ptflops, fvcore, deepspeed and ultralytics-thop those that are to be compared.
Everything runs on the CPU, in eval mode, batch 1 for the models. The truths are closed forms, in
`summary_macs_models.py` and `summary_macs_layers.py`: convolutions, matrix products and attention
(not causal) count, biases, normalisation, activations and pooling do not, which is the convention
of published tables. "ok" is within 3% of the truth for models and 0.5% for single layers. Each
tool has a process of its own and each case a fork of it, since some tools leave torch patched.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from harness import import_torchvision, in_fresh_process, show, show_versions
from summary_macs_layers import BACKWARD, MICRO, backward_macs
from summary_macs_models import MODELS, Case
from summary_macs_tools import TOOLS
from torch import nn

CASES = (*MODELS, *MICRO)


def count(tool: str, number: int) -> float | str:
    """What the tool makes of a case; runs in a process that ends after it."""
    case = CASES[number]
    torch.manual_seed(0)
    try:
        model, inputs = case.build()
        macs, parameters = TOOLS[tool][1](model.eval(), inputs)
    except Exception as error:
        return f"error: {type(error).__name__}"
    return float(parameters if case.what == "parameters" else macs)


def counts(tool: str) -> dict[str, float | str]:
    """The tool's figure for every case, or why there is none."""
    warnings.simplefilter("ignore")
    import_torchvision()
    try:
        importlib.import_module(TOOLS[tool][0])
    except ModuleNotFoundError:
        return {case.name: "not installed" for case in CASES}
    found: dict[str, float | str] = {}
    for number, case in enumerate(CASES):
        fork = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(1, mp_context=fork) as pool:
            try:
                found[case.name] = pool.submit(count, tool, number).result()
            except BrokenProcessPool:
                found[case.name] = "error: the process died"
    return found


def cell(figure: float | str, truth: int, unit: float, tolerance: float) -> str:
    if isinstance(figure, str):
        return figure
    right = abs(figure / truth - 1) <= tolerance
    return f"{figure / unit:.3f} {'ok' if right else 'x'}"


def table(title: str, cases: Sequence[Case], found: dict[str, Any], micro: bool) -> None:
    rows = []
    for case in cases:
        unit = float(case.truth) if micro else 1e9
        figures = [f if isinstance(f, str) else f[case.name] for f in found.values()]
        cells = [cell(figure, case.truth, unit, 0.005 if micro else 0.03) for figure in figures]
        rows.append([case.name, f"{case.truth:,}" if micro else f"{case.truth / unit:.3f}", *cells])
    show(title, ["case" if micro else "model", "truth", *found], rows)


def backward_rows() -> list[list[str]]:
    """Backward MACs by closed form, ptools and FlopCounterMode."""
    from torch.utils.flop_counter import FlopCounterMode

    import ptools

    rows = []
    for name, layer in BACKWARD.items():
        model, image = nn.Sequential(nn.Conv2d(3, 32, 1), layer), torch.randn(2, 3, 16, 16)
        truth = backward_macs(layer, image)
        loss = model(image).sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        ours = ptools.summarize(model, image, backward=True).backward_macs
        figures = {"ptools": ours or 0, "FlopCounterMode": counter.get_total_flops() / 2}
        cells = [cell(f, truth, truth, 0.005) for f in figures.values()]
        rows.append([name, f"{truth:,}", *cells])
    return rows


def main() -> None:
    found = {tool: in_fresh_process(__file__, tool) for tool in TOOLS}
    table("GMACs of one forward; ok: within 3% of the truth", MODELS, found, micro=False)
    table("Ratio to the truth; ok: within 0.5% of it", MICRO, found, micro=True)
    show(
        "MACs of the backward, ratio to the truth",
        ["1x1 convolution, then", "truth", "ptools", "FlopCounterMode"],
        backward_rows(),
    )
    peers = ("torchinfo", "ptflops", "fvcore", "deepspeed", "ultralytics-thop")
    show_versions("torchvision", "transformers", *peers)


if __name__ == "__main__":
    if sys.argv[1:]:
        result = counts(sys.argv[1])
        print(f"\n{json.dumps(result)}")
    else:
        main()
