"""The tools of `summary_macs.py`, each called as its documentation shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Counts = tuple[float, int]  # MACs, parameters


def by_ptools(model: nn.Module, inputs: tuple[Any, ...]) -> Counts:
    import ptools

    summary = ptools.summarize(model, inputs)
    return summary.macs or 0, summary.parameters


def by_torchinfo(model: nn.Module, inputs: tuple[Any, ...]) -> Counts:
    import torchinfo

    summary = torchinfo.summary(model, input_data=inputs, verbose=0)
    return summary.total_mult_adds, summary.total_params


class Spread(nn.Module):
    """A model with its inputs in one argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: tuple[Any, ...]) -> Any:
        return self.model(*inputs)


def by_ptflops(model: nn.Module, inputs: tuple[Any, ...], backend: str = "pytorch") -> Counts:
    import ptflops

    macs, parameters = ptflops.get_model_complexity_info(
        Spread(model),
        (1,),
        input_constructor=lambda _: {"inputs": inputs},
        as_strings=False,
        print_per_layer_stat=False,
        backend=backend,
    )
    if macs is None:
        raise RuntimeError("gave no count")
    return macs, parameters


def by_ptflops_aten(model: nn.Module, inputs: tuple[Any, ...]) -> Counts:
    return by_ptflops(model, inputs, "aten")


def by_fvcore(model: nn.Module, inputs: tuple[Any, ...]) -> Counts:
    from fvcore.nn import FlopCountAnalysis, parameter_count

    return FlopCountAnalysis(model, inputs).total(), parameter_count(model)[""]


def by_deepspeed(model: nn.Module, inputs: tuple[Any, ...]) -> Counts:
    from deepspeed.profiling.flops_profiler import get_model_profile

    _, macs, parameters = get_model_profile(
        model, args=list(inputs), print_profile=False, as_string=False
    )
    return macs, parameters


def by_thop(model: nn.Module, inputs: tuple[Any, ...]) -> Counts:
    import thop

    macs, parameters = thop.profile(model, inputs=inputs, verbose=False)[:2]
    return macs, int(parameters)


def by_flop_counter(model: nn.Module, inputs: tuple[Any, ...]) -> Counts:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() / 2, sum(p.numel() for p in model.parameters())


def by_flop_counter_no_grad(model: nn.Module, inputs: tuple[Any, ...]) -> Counts:
    with torch.no_grad():
        return by_flop_counter(model, inputs)


TOOLS: dict[str, tuple[str, Callable[[nn.Module, tuple[Any, ...]], Counts]]] = {
    "ptools": ("ptools", by_ptools),
    "torchinfo": ("torchinfo", by_torchinfo),
    "ptflops": ("ptflops", by_ptflops),
    "ptflops aten": ("ptflops", by_ptflops_aten),
    "fvcore": ("fvcore.nn", by_fvcore),
    "DeepSpeed": ("deepspeed", by_deepspeed),
    "ultralytics-thop": ("thop", by_thop),
    "FlopCounterMode": ("torch.utils.flop_counter", by_flop_counter),
    "same, no_grad": ("torch.utils.flop_counter", by_flop_counter_no_grad),
}
